//! A node that drains answers what it was asked, and one node drains at a time.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{
    api::Api,
    cluster::{Cluster, Kind},
    turn,
    wait::wait_until,
};
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

const NODES: usize = 3;
const PUBLISHERS: usize = 20;
const LIMIT: Duration = Duration::from_secs(60);

/// Each publishes one message after the other on a connection that it keeps, to the node that drains and to no other, until
/// it cannot connect any more. No request that was sent goes without an answer.
#[tokio::test(flavor = "multi_thread")]
async fn every_request_to_a_draining_node_is_answered() -> Result<()> {
    let _turn = turn::take(module_path!());
    let mut cluster = Cluster::start(Kind::Library, NODES).await?;
    let url = cluster.url(1);
    let publishers = join_all((0..PUBLISHERS).map(|number| publish_until_gone(url.clone(), number)));
    let drained = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        cluster.drain(1).await
    };
    let (publishers, drained) = tokio::join!(publishers, drained);
    drained?;
    let (mut answers, mut last) = (0, 0);
    for told in publishers {
        let told = told?;
        answers += told.answers;
        last += usize::from(told.asked_to_go);
    }
    eprintln!("{answers} answers to {PUBLISHERS} publishers");
    ensure!(answers > PUBLISHERS, "they had hardly begun");
    ensure!(last == PUBLISHERS, "{last} of {PUBLISHERS} were told to go elsewhere before the node went");
    cluster.shut_down().await
}

struct Told {
    answers: usize,
    /// By `Connection: close`.
    asked_to_go: bool,
}

async fn publish_until_gone(url: String, number: usize) -> Result<Told> {
    let (api, mut told) = (Api::new(url), Told { answers: 0, asked_to_go: false });
    for message in 0.. {
        let path = format!("/v1/groups/chat:{number}/messages");
        let body = json!({"data": message, "key": format!("{number}-{message}")}).to_string().into_bytes();
        match api.raw(Method::POST, &path, Some("application/json"), body).await {
            Ok(answer) => {
                ensure!(answer.status().is_success() || answer.status() == 503, "publisher {number}: {answer:?}");
                told.asked_to_go |= answer.headers().get("connection").is_some_and(|value| value == "close");
                // The whole of it, so that the connection is kept.
                answer.bytes().await.with_context(|| format!("publisher {number}, message {message}"))?;
                told.answers += 1;
            }
            Err(error) => {
                let refused = error.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_connect);
                ensure!(refused, "publisher {number}, message {message}: no answer to what was sent: {error:#}");
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(told)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_drains_at_a_time() -> Result<()> {
    let _turn = turn::take(module_path!());
    let cluster = Cluster::start(Kind::Program, NODES).await?;
    let drain = async |asked: usize, path: &str| {
        cluster.api(asked).post(&format!("/v1/cluster/nodes/{path}"), Value::Null).await
    };
    ensure!(drain(0, "n2/drain").await?.status == 202);
    let heard = async || {
        let health = cluster.api(2).health().await.unwrap_or_default();
        health["nodes"].as_array().into_iter().flatten().any(|node| node["node"] == "n2" && node["state"] == "draining")
    };
    wait_until("another node to hear of it", LIMIT, heard).await?;
    let refused = drain(2, "n3/drain").await?;
    ensure!(refused.status == 409 && refused.body["detail"][0]["type"] == "node_draining", "{refused:?}");
    ensure!(refused.body["detail"][0]["msg"].as_str().is_some_and(|msg| msg.contains("n2")), "{refused:?}");
    let forced = drain(2, "n3/drain?force=true").await?;
    ensure!(forced.status == 202, "{forced:?}");
    cluster.shut_down().await
}
