//! `roost publish`: one message to a group, over HTTP.

use std::time::Duration;

use serde_json::value::RawValue;

use super::{
    api::{Api, ApiArgs},
    print,
};
use crate::{clock, id::GroupName};

/// Arguments of `roost publish`.
#[derive(Debug, clap::Args)]
pub(super) struct PublishArgs {
    /// The group
    group: String,
    /// The message: JSON; what is not JSON is sent as a string
    #[arg(allow_hyphen_values = true)]
    data: String,
    /// Publishes with the same key are one publish, also across retries; a random one unless given
    #[arg(long)]
    key: Option<String>,
    /// How long to go on trying while the cluster says that a retry makes sense
    #[arg(long, default_value_t = 5)]
    retry_s: u64,
    /// Tell who is in the group now, once, and keep it nowhere
    #[arg(long, conflicts_with_all = ["key", "retry_s"])]
    ephemeral: bool,
    #[command(flatten)]
    api: ApiArgs,
}

/// The body: the data's text as it is, so that numbers and spaces arrive unchanged.
#[derive(serde::Serialize)]
struct Body<'a> {
    data: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    ephemeral: bool,
}

pub(super) async fn run(args: PublishArgs) -> anyhow::Result<()> {
    GroupName::parse(&args.group).map_err(anyhow::Error::msg)?;
    let key = args.key.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let body = body(&args.data, (!args.ephemeral).then_some(&key))?;
    let api = Api::new(&args.api)?;
    let give_up_ms = clock::mono_ms().saturating_add(args.retry_s.saturating_mul(1_000));
    loop {
        match api.post(&["v1", "groups", &args.group, "messages"], body.clone()).await {
            Ok(answer) => return print::line(answer.trim_end()),
            Err(refusal) => match refusal.retry_after {
                Some(_) if args.ephemeral => return Err(refusal.into()),
                Some(after) if clock::mono_ms() < give_up_ms => {
                    print::note(format_args!("{refusal}; again"));
                    tokio::time::sleep(after.clamp(Duration::from_millis(100), Duration::from_secs(2))).await;
                }
                Some(_) => anyhow::bail!("{refusal}; to try again without making it twice, add --key {key}"),
                None => return Err(refusal.into()),
            },
        }
    }
}

/// Without a key it is ephemeral.
fn body(data: &str, key: Option<&str>) -> anyhow::Result<String> {
    let data = match serde_json::from_str::<Box<RawValue>>(data) {
        Ok(json) => json,
        Err(_) => RawValue::from_string(serde_json::to_string(data)?)?,
    };
    Ok(serde_json::to_string(&Body { data: &data, key, ephemeral: key.is_none() })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_json_where_it_can_be() {
        let check = |data: &str, expected: &str| {
            assert_eq!(body(data, Some("k")).unwrap(), format!(r#"{{"data":{expected},"key":"k"}}"#));
            assert_eq!(body(data, None).unwrap(), format!(r#"{{"data":{expected},"ephemeral":true}}"#));
        };
        check("{\"a\": 1}", "{\"a\": 1}");
        check("12345678901234567890.5", "12345678901234567890.5");
        check("hello \"you\"", r#""hello \"you\"""#);
        check("\"text\"", "\"text\"");
        check("", "\"\"");
        check("{", "\"{\"");
    }
}
