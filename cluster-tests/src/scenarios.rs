//! Scenarios for our clients, written once as data (`node/clients/scenarios/*.json`) and played with each of them against real
//! nodes: what the program behind a client is told, and what it is answered.
//!
//! A client is a [`Puppet`], a process that does what it is asked and says what comes of it. Everything else is here: the nodes, the
//! ways to them (`way.rs`), a backend's calls, and, for what nodes do seldom, servers that say what a scenario has them say
//! (`script.rs`). A step is an object: `do` names it, and `Player::step` has them all. In its texts `$name` stands for what was
//! saved before; `like` means an object with these fields at least.

mod puppet;
mod script;
mod way;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use roost::tasks::Tasks;
use serde_json::{Map, Value, json};

pub use self::puppet::Puppet;
use self::{
    puppet::Told,
    script::Script,
    way::{Mode, Way},
};
use crate::{cluster::Cluster, jwt, wait::wait_for};

/// For whatever a step waits for.
const LIMIT: Duration = Duration::from_secs(20);

/// What is a part of a group's messages, each of which a scenario has to expect.
const CONTENT: [&str; 3] = ["message", "gap", "reset"];

/// A scenario.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its file's name.
    pub name: String,
    steps: Vec<Value>,
}

impl Scenario {
    /// All of a folder, by name.
    pub fn all(folder: &Path) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for file in std::fs::read_dir(folder).with_context(|| format!("the scenarios in {}", folder.display()))? {
            let path = file?.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let read = || -> Result<Value> { Ok(serde_json::from_slice(&std::fs::read(&path)?)?) };
            let scenario = read().with_context(|| path.display().to_string())?;
            ensure!(scenario["about"].is_string(), "{name} does not say what it is about");
            let steps = scenario["steps"].as_array().with_context(|| format!("{name} has steps"))?.clone();
            all.push(Self { name, steps });
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    }

    /// Plays it with a client; in the end all nodes run again.
    pub async fn play(&self, puppet: &mut Puppet, cluster: &mut Cluster) -> Result<()> {
        let vars = BTreeMap::from([("run".to_owned(), json!(uuid::Uuid::new_v4().simple().to_string()))]);
        let mut player = Player {
            puppet,
            cluster,
            vars,
            clients: BTreeMap::new(),
            scripts: BTreeMap::new(),
            pending: BTreeMap::new(),
            cursors: BTreeMap::new(),
            tasks: Tasks::new(),
        };
        for (at, step) in self.steps.iter().enumerate() {
            if let Err(error) = player.step(step).await {
                let told = player.puppet.told();
                let told = told.iter().rev().take(40).rev().map(|told| format!("\n  {told:?}")).collect::<String>();
                return Err(error.context(format!("{}, step {at}: {step}\ntold:{told}", self.name)));
            }
        }
        player.end().await.with_context(|| format!("the end of {}", self.name))
    }
}

/// A scenario under way.
struct Player<'a> {
    puppet: &'a mut Puppet,
    cluster: &'a mut Cluster,
    vars: BTreeMap<String, Value>,
    /// The ways of each client, to its nodes.
    clients: BTreeMap<String, Vec<Way>>,
    scripts: BTreeMap<String, Script>,
    /// Asked, and not answered yet.
    pending: BTreeMap<String, Vec<u64>>,
    /// How much of what was told is expected: by client, event (or all content) and group.
    cursors: BTreeMap<(String, String, String), usize>,
    tasks: Tasks,
}

/// The fields of a step that are not dealt with yet.
struct Fields(Map<String, Value>);

impl Fields {
    fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name)
    }

    fn value(&mut self, name: &str) -> Result<Value> {
        self.take(name).with_context(|| format!("the step needs `{name}`"))
    }

    fn text(&mut self, name: &str) -> Result<String> {
        Ok(self.value(name)?.as_str().with_context(|| format!("`{name}` is a text"))?.to_owned())
    }

    fn list(&mut self, name: &str) -> Result<Vec<Value>> {
        Ok(self.value(name)?.as_array().with_context(|| format!("`{name}` is a list"))?.clone())
    }
}

impl Player<'_> {
    async fn step(&mut self, step: &Value) -> Result<()> {
        let filled = if step["do"] == "script" { step.clone() } else { filled(step, &self.vars) };
        let mut fields = Fields(filled.as_object().context("a step is an object")?.clone());
        let kind = fields.text("do")?;
        match &*kind {
            // `nodes` are those that its URLs lead to, by number, or scripts, by name.
            "connect" => self.connect(&mut fields).await?,
            // Listens to a group without joining it.
            "follow" | "join" | "leave" | "publish" | "history" | "members" | "position" | "close" => {
                self.ask(&kind, &mut fields).await?;
            }
            // What became of what was asked with an `id`.
            "outcome" => {
                let id = fields.text("id")?;
                let asked = self.pending.remove(&id).with_context(|| format!("nothing was asked as {id}"))?;
                self.outcome(asked, &mut fields).await?;
            }
            // Waits for an event: one that is like this, after those that were waited for before.
            "await" => self.event(&mut fields).await?,
            // The next of a group's content are these messages: `data`, or `numbers` from one to before another.
            "messages" => {
                let data = data(&mut fields)?;
                let events = data.into_iter().map(|data| json!({"event": "message", "data": data})).collect();
                self.content(&mut fields, events).await?;
            }
            // The next of a group's content: `event`, and what it is like.
            "told" => {
                let events = fields.list("events")?;
                self.content(&mut fields, events).await?;
            }
            // A client's connections end without a goodbye.
            "cut" => self.ways(&fields.text("as")?)?.iter().for_each(Way::cut),
            // `pass`, `refuse`, `hold` (not a byte goes either way), `deaf` (what nodes say is lost).
            "way" => {
                let mode: Mode = serde_json::from_value(fields.value("is")?)?;
                self.ways(&fields.text("as")?)?.iter().for_each(|way| way.set(mode));
            }
            // Nodes, by number, or `of` a client.
            "kill" => {
                let node = self.node(&mut fields)?;
                self.cluster.crash(node).await?;
            }
            "drain" => {
                let node = self.node(&mut fields)?;
                self.cluster.drain(node).await?;
            }
            "restart" => self.cluster.restart_all().await?,
            // A backend's call.
            "call" => self.call(&mut fields).await?,
            // A backend makes a token that lasts for some seconds.
            "jwt" => {
                let (name, mut claims) = (fields.text("save")?, fields.value("claims")?);
                let lasts_s = fields.value("expires_in_s")?.as_u64().context("seconds are a number")?;
                claims["exp"] = json!(jwt::now_s() + lasts_s);
                self.vars.insert(name, json!(jwt::hs256(jwt::SECRET, &claims)?));
            }
            // A server that says what it is told to; a `connect` finds it by its name.
            "script" => {
                let (name, accepts) = (fields.text("name")?, fields.list("accepts")?);
                self.scripts.insert(name, Script::start(accepts, &self.tasks).await?);
            }
            // It has said and heard everything.
            "played" => {
                let name = fields.text("name")?;
                self.scripts.get(&name).context("there is such a script")?.played(LIMIT).await?;
            }
            other => bail!("there is no step {other}"),
        }
        ensure!(fields.0.is_empty(), "these fields mean nothing here: {:?}", fields.0);
        Ok(())
    }

    async fn connect(&mut self, fields: &mut Fields) -> Result<()> {
        let name = fields.text("as")?;
        let mut ways = Vec::new();
        for node in fields.list("nodes")? {
            let url = match node.as_str() {
                Some(script) => self.scripts.get(script).context("there is such a script")?.url(),
                None => self.cluster.url(usize::try_from(node.as_u64().context("a node is a number")?)?),
            };
            ways.push(Way::start(&url, &self.tasks).await?);
        }
        let urls: Vec<String> = ways.iter().map(Way::url).collect();
        self.clients.insert(name.clone(), ways);
        let mut ask = json!({"do": "connect", "as": name, "urls": urls});
        for field in ["token", "tokens", "storage", "client"] {
            if let Some(value) = fields.take(field) {
                ask[field] = value;
            }
        }
        let asked = self.puppet.ask(ask).await?;
        self.answer(asked).await?;
        Ok(())
    }

    async fn ask(&mut self, kind: &str, fields: &mut Fields) -> Result<()> {
        let mut ask = json!({"do": kind, "as": fields.text("as")?});
        for field in ["group", "key", "ephemeral", "since", "after", "limit", "last"] {
            if let Some(value) = fields.take(field) {
                ask[field] = value;
            }
        }
        let mut asked = Vec::new();
        if kind == "publish" {
            for data in data(fields)? {
                ask["data"] = data;
                asked.push(self.puppet.ask(ask.clone()).await?);
            }
        } else {
            asked.push(self.puppet.ask(ask).await?);
        }
        match fields.take("id") {
            Some(id) => {
                self.pending.insert(id.as_str().context("an id is a text")?.to_owned(), asked);
                Ok(())
            }
            None => self.outcome(asked, fields).await,
        }
    }

    /// Waits for the answers, which are all like `ok` or `error`; `save` is of the last one.
    async fn outcome(&mut self, asked: Vec<u64>, fields: &mut Fields) -> Result<()> {
        let wanted = match (fields.take("ok"), fields.take("error")) {
            (None, Some(error)) => json!({"error": error}),
            (ok, None) => json!({"ok": ok.unwrap_or_else(|| json!("*"))}),
            (Some(_), Some(_)) => bail!("it is either `ok` or `error`"),
        };
        let mut last = Value::Null;
        for number in asked {
            last = self.answer(number).await?;
            ensure!(is_like(&last, &wanted), "the answer is {last}");
        }
        self.save(fields, &last["ok"])
    }

    async fn answer(&mut self, number: u64) -> Result<Value> {
        let puppet = &mut self.puppet;
        let (answer, _) = wait_for("an answer", LIMIT, async || puppet.answer(number)).await?;
        Ok(answer)
    }

    fn save(&mut self, fields: &mut Fields, value: &Value) -> Result<()> {
        for (name, pointer) in fields.take("save").and_then(|save| save.as_object().cloned()).unwrap_or_default() {
            let found = pointer.as_str().and_then(|pointer| value.pointer(pointer));
            self.vars.insert(name, found.with_context(|| format!("there is no {pointer} in {value}"))?.clone());
        }
        Ok(())
    }

    async fn event(&mut self, fields: &mut Fields) -> Result<()> {
        let (name, event) = (fields.text("as")?, fields.text("event")?);
        let group = fields.take("group").and_then(|group| Some(group.as_str()?.to_owned())).unwrap_or_default();
        let like = fields.take("like").unwrap_or_else(|| json!({}));
        let cursor = self.cursors.entry((name.clone(), event.clone(), group.clone())).or_default();
        let puppet = &mut self.puppet;
        let (value, _) = wait_for(&format!("{event} of {name} {group}"), LIMIT, async || {
            let told = puppet.told();
            let found = told
                .iter()
                .enumerate()
                .skip(*cursor)
                .find(|(_, told)| told.of(&name, &group) && told.event == event && is_like(&told.value, &like))?;
            *cursor = found.0 + 1;
            Some(found.1.value.clone())
        })
        .await?;
        self.save(fields, &value)
    }

    /// The next of a group's content is this, and each message stands right after what came before it.
    async fn content(&mut self, fields: &mut Fields, events: Vec<Value>) -> Result<()> {
        let (name, group) = (fields.text("as")?, fields.text("group")?);
        let cursor = self.cursors.entry((name.clone(), "content".to_owned(), group.clone())).or_default();
        let first = *cursor;
        *cursor += events.len();
        let puppet = &mut self.puppet;
        let what = format!("{} events of {name} in {group}", events.len());
        let (content, _) = wait_for(&what, LIMIT, async || {
            let content = content(&puppet.told(), &name, &group);
            (content.len() >= first + events.len()).then_some(content)
        })
        .await?;
        for (told, wanted) in content[first..].iter().zip(&events) {
            let mut told_whole = told.value.clone();
            told_whole["event"] = json!(told.event);
            ensure!(is_like(&told_whole, wanted), "told is {told_whole}, not {wanted}");
        }
        is_contiguous(&content)
    }

    fn ways(&self, name: &str) -> Result<&[Way]> {
        self.clients.get(name).map(Vec::as_slice).with_context(|| format!("nobody is connected as {name}"))
    }

    fn node(&self, fields: &mut Fields) -> Result<usize> {
        if let Some(node) = fields.take("node") {
            return Ok(usize::try_from(node.as_u64().context("a node is a number")?)?);
        }
        let name = fields.text("of")?;
        let told = self.puppet.told();
        let of = told.iter().rev().find_map(|told| told.of(&name, "").then(|| told.value["node"].as_str()).flatten());
        let node = of.with_context(|| format!("{name} has been at no node"))?;
        (0..self.cluster.running().len())
            .find(|number| Cluster::name(*number) == node)
            .context("its node is one of ours")
    }

    async fn call(&mut self, fields: &mut Fields) -> Result<()> {
        let (method, path) = (fields.text("method")?.parse()?, fields.text("path")?);
        let body = fields.take("body").unwrap_or(Value::Null);
        let status = fields.take("status").and_then(|status| status.as_u64()).unwrap_or(200);
        let node = *self.cluster.running().first().context("a node runs")?;
        let answer = self.cluster.api(node).call(method, &path, body).await?;
        ensure!(u64::from(answer.status) == status, "it is answered {answer:?}");
        self.save(fields, &answer.body)
    }

    /// Nothing was told that the scenario did not expect: nothing twice.
    async fn end(mut self) -> Result<()> {
        ensure!(self.pending.is_empty(), "nobody has waited for {:?}", self.pending.keys());
        for name in self.clients.keys().cloned().collect::<Vec<_>>() {
            let asked = self.puppet.ask(json!({"do": "close", "as": name})).await?;
            self.answer(asked).await?;
        }
        let told = self.puppet.forget();
        let told_of: BTreeSet<_> = told.iter().map(|told| (told.client.clone(), told.group.clone())).collect();
        for (name, group) in told_of {
            let content = content(&told, &name, &group);
            let key = (name, "content".to_owned(), group);
            let expected = self.cursors.get(&key).copied().unwrap_or(0);
            ensure!(content.len() == expected, "{} was told more in {}: {:?}", key.0, key.2, &content[expected..]);
        }
        if self.cluster.running().len() < 3 {
            self.cluster.restart_all().await?;
        }
        self.tasks.shut_down(Duration::from_secs(5)).await;
        Ok(())
    }
}

/// What a publish has, or messages are to have.
fn data(fields: &mut Fields) -> Result<Vec<Value>> {
    if let Some(numbers) = fields.take("numbers") {
        let [from, to]: [u64; 2] = serde_json::from_value(numbers).context("`numbers` are two")?;
        return Ok((from..to).map(Value::from).collect());
    }
    if let Some(bytes) = fields.take("bytes") {
        let bytes = usize::try_from(bytes.as_u64().context("`bytes` is a number")?)?;
        return Ok(vec![Value::from("x".repeat(bytes))]);
    }
    match fields.value("data")? {
        Value::Array(all) => Ok(all),
        one => Ok(vec![one]),
    }
}

fn content(told: &[Told], name: &str, group: &str) -> Vec<Told> {
    told.iter().filter(|told| told.of(name, group) && CONTENT.contains(&&*told.event)).cloned().collect()
}

/// Each message stands right after the one before it, or after the end of the gap or the place of the reset between them.
fn is_contiguous(content: &[Told]) -> Result<()> {
    let mut at: Option<(Value, u64)> = None;
    // What is ephemeral has no place.
    for Told { event, value, .. } in content.iter().filter(|told| told.value["ephemeral"] != true) {
        let (first, last) = match &**event {
            "gap" => (value["from"].as_u64(), value["to"].as_u64()),
            _ => (value["offset"].as_u64(), value["offset"].as_u64()),
        };
        let (first, last) = (first.context("it says where")?, last.context("it says where")?);
        if let Some((epoch, before)) = at.filter(|_| event != "reset") {
            ensure!(value["epoch"] == epoch && first == before + 1, "{event} {value} follows {epoch}:{before}");
        }
        at = Some((value["epoch"].clone(), last));
    }
    Ok(())
}

/// The text with what `$name` stands for; a text that is nothing else becomes that value.
fn filled(value: &Value, vars: &BTreeMap<String, Value>) -> Value {
    match value {
        Value::String(text) => match text.strip_prefix('$').and_then(|name| vars.get(name)) {
            Some(value) => value.clone(),
            None => {
                // The longest first: `$token2` is not `$token` and a 2.
                let mut names: Vec<_> = vars.iter().collect();
                names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
                let fill = |text: String, (name, value): (&String, &Value)| {
                    text.replace(&format!("${name}"), value.as_str().unwrap_or_default())
                };
                Value::String(names.into_iter().fold(text.clone(), fill))
            }
        },
        Value::Array(items) => items.iter().map(|item| filled(item, vars)).collect(),
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), filled(value, vars))).collect(),
        other => other.clone(),
    }
}

/// Objects have these fields at least, `"*"` is anything, all else is the same.
fn is_like(value: &Value, wanted: &Value) -> bool {
    match (value, wanted) {
        (_, Value::String(any)) if any == "*" => true,
        (Value::Object(value), Value::Object(wanted)) => {
            wanted.iter().all(|(name, wanted)| is_like(value.get(name).unwrap_or(&Value::Null), wanted))
        }
        (Value::Array(value), Value::Array(wanted)) => {
            value.len() == wanted.len() && value.iter().zip(wanted).all(|(value, wanted)| is_like(value, wanted))
        }
        _ => value == wanted,
    }
}
