//! Backends as our documents show them, on FastAPI, Express and axum: a user logs in there, and what is published there comes to the
//! page, by a session in the cookie, also over a reload and the end of a node, until the user logs out.

use std::{
    env,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use cluster_tests::{api::KEY, cluster::Cluster, ports::free_block, socket::Socket, turn, wait::wait_until};
use reqwest::{Method, Response, StatusCode, header};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::elsewhere::{clients, has_chromium, node, python, repository};

/// Until a backend listens.
const LIMIT: Duration = Duration::from_secs(60);
/// Until a browser has done at all backends what it does there.
const DRIVING: Duration = Duration::from_secs(180);
const NAMES: [&str; 3] = ["fastapi", "express", "axum"];

/// A backend that runs. Dropped, it is killed.
struct Backend {
    name: &'static str,
    url: String,
    http: reqwest::Client,
    _child: Child,
    _folder: Option<TempDir>,
}

impl Backend {
    async fn start(name: &'static str, port: u16, nodes: &[String]) -> Result<Self> {
        let mut folder = repository().join("node/clients/backends");
        let mut copy = None;
        let (program, arguments): (PathBuf, Vec<String>) = match name {
            "fastapi" => {
                let words = ["-m", "uvicorn", "app:app", "--log-level", "warning", "--port"].map(str::to_owned);
                (python()?, words.into_iter().chain([port.to_string()]).collect())
            }
            // Its packages lie with those of the tests.
            "express" => {
                folder = copy.insert(beside_packages(&folder)?).path().to_owned();
                (node()?, vec!["app.mjs".to_owned()])
            }
            _ => (example("backend")?, Vec::new()),
        };
        let child = Command::new(&program)
            .args(arguments)
            .current_dir(&folder)
            .env("PORT", port.to_string())
            .env("ROOST_URLS", nodes.join(","))
            .env("ROOST_API_KEY", KEY)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let http = reqwest::Client::builder().timeout(Duration::from_secs(20)).build()?;
        let this = Self { name, url: format!("http://127.0.0.1:{port}"), http, _child: child, _folder: copy };
        let listens = async || this.http.get(&this.url).send().await.is_ok_and(|answer| answer.status().is_success());
        wait_until(&format!("{name} to listen"), LIMIT, listens).await?;
        Ok(this)
    }

    async fn call(&self, method: Method, path: &str, cookies: &str, body: &Value) -> Result<Response> {
        let request = self.http.request(method, format!("{}{path}", self.url)).header(header::COOKIE, cookies);
        Ok(if body.is_null() { request } else { request.json(body) }.send().await?)
    }

    async fn json(&self, method: Method, path: &str, cookies: &str, body: &Value) -> Result<Value> {
        let answer = self.call(method, path, cookies, body).await?;
        ensure!(answer.status().is_success(), "{} {path}: {} {}", self.name, answer.status(), answer.text().await?);
        Ok(answer.json().await?)
    }

    /// What a browser sends after that.
    async fn log_in(&self, user: &str, cookies: &str) -> Result<String> {
        let answer = self.call(Method::POST, "/login", cookies, &json!({"user": user})).await?;
        ensure!(answer.status() == StatusCode::NO_CONTENT, "{}: {}", self.name, answer.text().await?);
        let mut cookies = Vec::new();
        for set in answer.headers().get_all(header::SET_COOKIE) {
            let set = set.to_str()?;
            let attributes = set.to_ascii_lowercase();
            ensure!(attributes.contains("; httponly") && attributes.contains("; samesite=lax"), "{}: {set}", self.name);
            ensure!(attributes.contains("; path=/"), "{}: {set}", self.name);
            cookies.push(set.split(';').next().context("a cookie")?.to_owned());
        }
        ensure!(cookies.len() == 2, "{}: {cookies:?}", self.name);
        Ok(cookies.join("; "))
    }

    /// As its page connects.
    async fn connect(&self, node: &str, cookies: &str) -> Result<(Socket, Value)> {
        let headers = [("cookie", cookies), ("origin", &*self.url)];
        let mut socket = Socket::connect_with(node, "/ws", &headers).await?;
        socket.send(&json!({"type": "hello"})).await?;
        let answer = socket.frame().await?;
        Ok((socket, answer))
    }
}

/// A copy beside the installed packages: Node looks for these from where a program lies.
fn beside_packages(folder: &Path) -> Result<TempDir> {
    let copy = tempfile::tempdir_in(clients().join("node_modules"))?;
    for file in ["app.mjs", "page.html"] {
        std::fs::copy(folder.join(file), copy.path().join(file))?;
    }
    Ok(copy)
}

/// A program that Cargo has built with the tests.
pub(crate) fn example(name: &str) -> Result<PathBuf> {
    let here = env::current_exe()?;
    let profile = here.ancestors().nth(2).context("tests run from the target folder")?;
    let path = profile.join("examples").join(name);
    ensure!(path.is_file(), "{} is missing: `cargo build -p cluster-tests --examples` builds it", path.display());
    Ok(path)
}

/// Nodes that let the pages of these backends use the cookie, and the backends.
async fn start() -> Result<(Cluster, Vec<Backend>)> {
    let port = free_block(3)?;
    let origins: Vec<String> = (0..3).map(|at| format!("http://127.0.0.1:{}", port + at)).collect();
    let origins = json!(origins).to_string();
    let cluster = Cluster::program_with(3, &[("ROOST_SESSION__ALLOWED_ORIGINS", &origins)]).await?;
    let mut backends = Vec::new();
    for (name, port) in NAMES.into_iter().zip(port..) {
        backends.push(Backend::start(name, port, &cluster.urls_from(0)).await?);
    }
    Ok((cluster, backends))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_logs_in_publishes_and_logs_out() -> Result<()> {
    let _turn = turn::take(module_path!());
    let (mut cluster, backends) = start().await?;
    let mut there = Vec::new();
    for backend in &backends {
        there.push(logs_in_and_hears(backend, &cluster).await.with_context(|| backend.name)?);
    }
    // The node that they ask first is gone: they ask another one.
    cluster.crash(0).await?;
    let mut left = Vec::new();
    for (backend, (LoggedIn { ann, bob }, mut socket)) in backends.iter().zip(there) {
        let note = backend.json(Method::POST, "/notes", &ann, &json!({"text": backend.name})).await?;
        // All of them write into the same group.
        while socket.frame_of("message").await?["data"] != note {}
        logs_out(backend, &cluster, &ann, socket).await.with_context(|| backend.name)?;
        left.push((backend, bob));
    }
    cluster.shut_down().await?;
    let failing = left.iter().map(|(backend, bob)| fails_to_log_out(backend, bob));
    futures_util::future::try_join_all(failing).await.map(drop)
}

/// Their cookies.
struct LoggedIn {
    ann: String,
    bob: String,
}

/// Ann logs in, connects by the cookie, and hears what is published by the backend; a stranger does not.
async fn logs_in_and_hears(backend: &Backend, cluster: &Cluster) -> Result<(LoggedIn, Socket)> {
    let nobody = backend.call(Method::GET, "/me", "login=made-up; session_id=x", &Value::Null).await?;
    ensure!(nobody.status() == StatusCode::UNAUTHORIZED, "{nobody:?}");
    let wrong = backend.call(Method::POST, "/login", "", &json!({"user": "a:*"})).await?;
    ensure!(wrong.status() == StatusCode::UNPROCESSABLE_ENTITY, "{wrong:?}");
    let cookies = backend.log_in("ann", "").await?;
    let me = backend.json(Method::GET, "/me", &cookies, &Value::Null).await?;
    ensure!(me == json!({"user": "ann", "nodes": cluster.urls_from(0)}), "{me}");

    let (mut socket, welcome) = backend.connect(&cluster.url(1), &cookies).await?;
    ensure!(welcome["type"] == "welcome" && welcome["user"] == "ann", "{welcome}");
    let joined = socket.ask(&json!({"type": "join", "id": 1, "group": "notes:all"})).await?;
    ensure!(joined["type"] == "joined", "{joined}");
    let note = backend.json(Method::POST, "/notes", &cookies, &json!({"text": "milk"})).await?;
    ensure!(note == json!({"id": 1, "text": "milk", "by": "ann"}), "{note}");
    let heard = socket.frame_of("message").await?;
    ensure!(heard["data"] == note && heard["group"] == "notes:all", "{heard}");
    let notes = backend.json(Method::GET, "/notes", &cookies, &Value::Null).await?;
    ensure!(notes == json!([note]), "{notes}");

    // An answer is heard from its first word on, however late it is joined, and by its asker alone.
    let asked = backend.json(Method::POST, "/ask", &cookies, &json!({"text": "why so?"})).await?;
    socket.send(&json!({"type": "join", "id": 2, "group": asked["group"], "since": asked["since"]})).await?;
    let mut text = String::new();
    loop {
        let heard = socket.frame_of("message").await?;
        text += heard["data"]["word"].as_str().unwrap_or_default();
        if heard["data"]["done"] == true {
            break;
        }
    }
    ensure!(text == "You asked: why so? ", "{text:?}");
    let other = backend.log_in("bob", "").await?;
    let (mut bob, _) = backend.connect(&cluster.url(1), &other).await?;
    let denied = bob.ask(&json!({"type": "join", "id": 1, "group": asked["group"]})).await?;
    ensure!(denied["code"] == "forbidden", "{denied}");
    let denied = socket.ask(&json!({"type": "publish", "id": 3, "group": "notes:all", "data": 1})).await?;
    ensure!(denied["code"] == "forbidden", "the page publishes nothing by itself: {denied}");
    // Who logs in again ends the earlier log-in.
    let again = backend.log_in("bob", &other).await?;
    let (frames, code) = bob.until_closed().await?;
    ensure!(code == 4_101, "{code} {frames:?}");
    let earlier = backend.call(Method::GET, "/me", &other, &Value::Null).await?;
    ensure!(earlier.status() == StatusCode::UNAUTHORIZED, "{earlier:?}");
    Ok((LoggedIn { ann: cookies, bob: again }, socket))
}

/// With no node there the session may live on, and so does the log-in: its user can try again.
async fn fails_to_log_out(backend: &Backend, cookies: &str) -> Result<()> {
    let out = backend.call(Method::POST, "/logout", cookies, &Value::Null).await?;
    ensure!(out.status() == StatusCode::SERVICE_UNAVAILABLE, "{}: {out:?}", backend.name);
    ensure!(out.headers().get(header::SET_COOKIE).is_none(), "{}: {out:?}", backend.name);
    let me = backend.call(Method::GET, "/me", cookies, &Value::Null).await?;
    ensure!(me.status() == StatusCode::OK, "{}: {me:?}", backend.name);
    Ok(())
}

/// The session ends with the log-in, also where it is in use.
async fn logs_out(backend: &Backend, cluster: &Cluster, cookies: &str, mut socket: Socket) -> Result<()> {
    let out = backend.call(Method::POST, "/logout", cookies, &Value::Null).await?;
    ensure!(out.status() == StatusCode::NO_CONTENT, "{out:?}");
    let (frames, code) = socket.until_closed().await?;
    ensure!(code == 4_101 && frames.last().is_some_and(|bye| bye["code"] == "session_ended"), "{code} {frames:?}");
    let me = backend.call(Method::GET, "/me", cookies, &Value::Null).await?;
    ensure!(me.status() == StatusCode::UNAUTHORIZED, "{me:?}");
    // These nodes let anyone in: its cookie is worth as much as none.
    let (mut stranger, welcome) = backend.connect(&cluster.url(2), cookies).await?;
    ensure!(welcome["type"] == "welcome" && welcome["user"] == "", "{welcome}");
    let denied = stranger.ask(&json!({"type": "join", "id": 1, "group": "@user:ann"})).await?;
    ensure!(denied["type"] == "error", "{denied}");
    Ok(())
}

/// The page in Chromium: state loaded and then followed, and an answer that is read over reloads.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_loads_and_follows_and_an_answer_outlives_reloads() -> Result<()> {
    let _turn = turn::take(module_path!());
    has_chromium()?;
    let (cluster, backends) = start().await?;
    let driving = Command::new(node()?)
        .arg(clients().join("backends.mjs"))
        .args(backends.iter().map(|backend| &backend.url))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let driven = tokio::time::timeout(DRIVING, driving).await.context("it takes too long")??;
    let (told, complained) = (String::from_utf8_lossy(&driven.stdout), String::from_utf8_lossy(&driven.stderr));
    ensure!(driven.status.success(), "{told}\n{complained}");
    ensure!(told.trim() == r#"{"backends":3,"notes":60,"reloads":9}"#, "{told}");
    cluster.shut_down().await
}
