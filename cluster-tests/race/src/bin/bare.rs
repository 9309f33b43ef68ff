//! The bare send loop: what the kernel alone asks for. A blocking thread for each connection reads; whoever publishes writes
//! the finished frame to each socket of the group, one after the other. A client that does not read would stop all others:
//! this is a measure, not a server. It has the naive server's words.

use std::{
    collections::HashMap,
    io::Write,
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::Context;
use tokio_tungstenite::tungstenite::{
    self, Message,
    protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    },
};

/// Little is read, and nothing deep is called.
const STACK_BYTES: usize = 128 << 10;

type Groups = Arc<Mutex<HashMap<String, Arc<Mutex<Vec<TcpStream>>>>>>;

fn main() -> anyhow::Result<()> {
    let port: u16 = std::env::args().nth(1).unwrap_or_default().parse()?;
    let groups = Groups::default();
    for stream in TcpListener::bind(("127.0.0.1", port))?.incoming() {
        let (stream, groups) = (stream?, groups.clone());
        // A client that is gone, or says something else, is none of the others' concern.
        thread::Builder::new().stack_size(STACK_BYTES).spawn(move || serve(stream, &groups).ok())?;
    }
    Ok(())
}

fn serve(stream: TcpStream, groups: &Groups) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut writing = stream.try_clone()?;
    let mut socket = tungstenite::accept(stream)?;
    loop {
        let Message::Text(text) = socket.read()? else { continue };
        let mut parts = text.splitn(4, ' ');
        let (word, mut next) = (parts.next(), || parts.next().context("a word is missing"));
        match word {
            Some("join") => {
                let group = group(groups, next()?);
                writing.write_all(&frame("joined")?)?;
                lock(&group).push(writing.try_clone()?);
            }
            Some("pub") => {
                let (id, name, data) = (next()?, next()?, next()?);
                let message = frame(data)?;
                let group = group(groups, name);
                lock(&group).retain_mut(|member| member.write_all(&message).is_ok());
                writing.write_all(&frame(&format!("ok {id}"))?)?;
            }
            _ => anyhow::bail!("neither join nor pub"),
        }
    }
}

fn frame(text: &str) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    Frame::message(text.to_owned(), OpCode::Data(Data::Text), true).format(&mut bytes)?;
    Ok(bytes)
}

fn group(groups: &Groups, name: &str) -> Arc<Mutex<Vec<TcpStream>>> {
    lock(groups).entry(name.to_owned()).or_default().clone()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
