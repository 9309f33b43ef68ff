//! A server that says what it is told to, for what a real one does seldom, or only when it is wrong.
//!
//! It takes one connection after the other, and plays a list of items on each: `hears` a frame that is like this (heartbeats are
//! passed over), `says` one, `closes` with a code, `drops` the connection. `after_ms` is how long after the end of the connection
//! before it the client has come, at least and at most. `$id` is that of the frame that was heard last; `save` keeps fields of it.
//! A connection whose list does not end it stays until the client goes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use roost::{clock, tasks::Tasks};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::{
    WebSocketStream, accept_async,
    tungstenite::{Message, protocol::CloseFrame},
};

use super::{filled, is_like};
use crate::wait::wait_for;

#[derive(Debug)]
pub(super) struct Script {
    url: String,
    outcome: Arc<Mutex<Option<Result<()>>>>,
}

impl Script {
    pub(super) async fn start(accepts: Vec<Value>, tasks: &Tasks) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let outcome = Arc::new(Mutex::new(None));
        let told = outcome.clone();
        let playing = async move {
            let (played, rest) =
                play(&listener, accepts).await.map_or_else(|error| (Err(error), None), |rest| (Ok(()), rest));
            *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(played);
            if let Some(mut rest) = rest {
                while rest.next().await.is_some_and(|heard| heard.is_ok()) {}
            }
        };
        tasks.spawn_detached("script", playing);
        Ok(Self { url, outcome })
    }

    pub(super) fn url(&self) -> String {
        self.url.clone()
    }

    /// Waits until everything was said and heard as the script has it.
    pub(super) async fn played(&self, limit: Duration) -> Result<()> {
        let take = async || self.outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
        wait_for("the end of the script", limit, take).await?.0
    }
}

/// Plays all, and gives the last connection if that is to stay.
async fn play(listener: &TcpListener, accepts: Vec<Value>) -> Result<Option<WebSocketStream<TcpStream>>> {
    let (mut vars, mut ended_ms, mut last) = (BTreeMap::new(), clock::mono_ms(), None);
    for (at, items) in accepts.iter().enumerate() {
        // Until now the one before had it.
        drop(last.take());
        let mut socket = accept_async(listener.accept().await?.0).await?;
        let items = items.as_array().context("what is played on a connection is a list")?;
        let mut stays = true;
        for item in items {
            stays = one(&mut socket, item, &mut vars, clock::mono_ms() - ended_ms)
                .await
                .with_context(|| format!("connection {at}: {item}"))?;
        }
        if stays && at + 1 < accepts.len() {
            while socket.next().await.is_some_and(|heard| heard.is_ok()) {}
        }
        ended_ms = clock::mono_ms();
        last = stays.then_some(socket);
    }
    Ok(last)
}

/// Plays one item, and says whether the connection goes on.
async fn one(
    socket: &mut WebSocketStream<TcpStream>,
    item: &Value,
    vars: &mut BTreeMap<String, Value>,
    since_ms: u64,
) -> Result<bool> {
    if let Some(like) = item.get("hears") {
        let heard = hear(socket).await?;
        ensure!(is_like(&heard, &filled(like, vars)), "heard is {heard}");
        vars.insert("id".to_owned(), heard["id"].clone());
        for (name, field) in item["save"].as_object().into_iter().flatten() {
            vars.insert(name.clone(), heard[field.as_str().unwrap_or_default()].clone());
        }
    } else if let Some(says) = item.get("says") {
        socket.send(Message::text(filled(says, vars).to_string())).await?;
    } else if let Some(code) = item.get("closes") {
        let code = u16::try_from(code.as_u64().context("a close code")?)?;
        socket.close(Some(CloseFrame { code: code.into(), reason: "as the script has it".into() })).await?;
        while socket.next().await.is_some_and(|heard| heard.is_ok()) {}
        return Ok(false);
    } else if item.get("drops").is_some() {
        return Ok(false);
    } else if let Some(between) = item.get("after_ms") {
        let [least, most]: [u64; 2] = serde_json::from_value(between.clone())?;
        ensure!((least..=most).contains(&since_ms), "it comes after {since_ms} ms");
    } else {
        bail!("this means nothing");
    }
    Ok(true)
}

async fn hear(socket: &mut WebSocketStream<TcpStream>) -> Result<Value> {
    loop {
        let text = match socket.next().await.context("the client has gone")?? {
            Message::Text(text) => text,
            Message::Close(_) => bail!("the client has closed it"),
            _ => continue,
        };
        let frame: Value = serde_json::from_str(&text)?;
        if frame["type"] != "heartbeat" {
            return Ok(frame);
        }
    }
}
