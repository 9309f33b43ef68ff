//! Notes that several people write, and answers that come word by word: a backend on axum, whose page follows both at Roost.
//!
//! ```text
//! ROOST_URLS=http://localhost:8000,http://localhost:8001 ROOST_API_KEY=dev-key PORT=9000 cargo run -p cluster-tests --example backend
//! ```
//!
//! `README.md` says what it shows.
#![expect(clippy::disallowed_methods, reason = "tasks are spawned as any program does that is not a part of Roost")]

use std::{
    collections::HashMap,
    env,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{FromRequestParts, State},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{net::TcpListener, time::sleep};
use uuid::Uuid;

type Shared = State<Arc<Backend>>;
type Answer<T> = Result<T, Failed>;

struct Backend {
    nodes: Vec<String>,
    key: String,
    http: reqwest::Client,
    /// A part of the notes' keys: their numbers begin anew with each run. Yours come from your database, and need none.
    run: Uuid,
    kept: Mutex<Kept>,
}

/// Yours is in your database.
#[derive(Default)]
struct Kept {
    /// Who is logged in, by the secret in the cookie.
    logins: HashMap<String, Login>,
    notes: Vec<Note>,
}

#[derive(Clone)]
struct Login {
    user: String,
    /// At Roost.
    session: String,
}

#[derive(Clone, Serialize)]
struct Note {
    id: usize,
    text: String,
    by: String,
}

#[derive(Deserialize)]
struct Named {
    user: String,
}

#[derive(Deserialize)]
struct Text {
    text: String,
}

/// What a request is answered that was not done.
#[derive(Debug)]
struct Failed(StatusCode, String);

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

fn no_answer(error: impl ToString) -> Failed {
    Failed(StatusCode::BAD_GATEWAY, error.to_string())
}

impl Backend {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks one node after the other, until one has done it. A publish has a key: repeated, it is still done once.
    async fn roost(&self, method: Method, path: &str, body: Value) -> Answer<(HeaderMap, Value)> {
        for node in self.nodes.iter().cycle().take(30) {
            let request = self.http.request(method.clone(), format!("{node}{path}")).bearer_auth(&self.key);
            match if body.is_null() { request } else { request.json(&body) }.send().await {
                Ok(answer) if ![429, 503, 504].contains(&answer.status().as_u16()) => {
                    // What is to be ended and is not there any more has ended.
                    let is_gone = method == Method::DELETE && answer.status() == StatusCode::NOT_FOUND;
                    let answer = if is_gone { answer } else { answer.error_for_status().map_err(no_answer)? };
                    let headers = answer.headers().clone();
                    let text = answer.text().await.map_err(no_answer)?;
                    return Ok((headers, serde_json::from_str(&text).unwrap_or_default()));
                }
                _ => sleep(Duration::from_millis(200)).await,
            }
        }
        Err(Failed(StatusCode::SERVICE_UNAVAILABLE, "no node has done it".to_owned()))
    }

    async fn publish(&self, group: &str, data: Value, key: &str) -> Answer<Value> {
        let body = json!({"data": data, "key": key});
        Ok(self.roost(Method::POST, &format!("/v1/groups/{group}/messages"), body).await?.1)
    }

    /// Ends a log-in. It is there until its session has ended, so that a log-out that fails can be tried again.
    async fn end(&self, headers: &HeaderMap) -> Answer<()> {
        let Some(login) = cookie(headers, "login") else { return Ok(()) };
        let there = self.kept().logins.get(&login).cloned();
        if let Some(Login { session, .. }) = there {
            // Its connections are closed, wherever they are.
            self.roost(Method::DELETE, &format!("/v1/sessions/{session}"), Value::Null).await?;
            self.kept().logins.remove(&login);
        }
        Ok(())
    }

    async fn write(&self, group: &str, question: &str) -> Answer<()> {
        // In place of your model's stream.
        for (number, word) in format!("You asked: {question}").split(' ').enumerate() {
            sleep(Duration::from_millis(50)).await;
            self.publish(group, json!({"word": format!("{word} ")}), &format!("{group}-{number}")).await?;
        }
        self.publish(group, json!({"done": true}), &format!("{group}-done")).await.map(drop)
    }
}

fn cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    let mut cookies = headers.get(header::COOKIE)?.to_str().ok()?.split("; ").filter_map(|one| one.split_once('='));
    cookies.find(|(there, _)| *there == name).map(|(_, value)| value.to_owned())
}

impl FromRequestParts<Arc<Backend>> for Login {
    type Rejection = Failed;

    async fn from_request_parts(parts: &mut Parts, backend: &Arc<Backend>) -> Answer<Self> {
        let login = cookie(&parts.headers, "login").and_then(|login| backend.kept().logins.get(&login).cloned());
        login.ok_or_else(|| Failed(StatusCode::UNAUTHORIZED, "log in".to_owned()))
    }
}

/// Yours asks for a password. The name becomes a part of groups' names.
async fn log_in(State(backend): Shared, earlier: HeaderMap, Json(Named { user }): Json<Named>) -> Answer<Response> {
    if !(1..=20).contains(&user.len()) || !user.bytes().all(|byte| byte.is_ascii_lowercase()) {
        return Err(Failed(StatusCode::UNPROCESSABLE_ENTITY, "a name has 1 to 20 small letters".to_owned()));
    }
    // What the page may follow; it publishes nothing by itself.
    let grants = ["notes:all".to_owned(), format!("answer:{user}:*")];
    let grants = grants.map(|pattern| json!({"pattern": pattern, "join": true, "publish": false}));
    let (headers, created) =
        backend.roost(Method::POST, "/v1/sessions", json!({"user": user, "grants": grants})).await?;
    let session = created["session"]["id"].as_str().unwrap_or_default().to_owned();
    backend.end(&earlier).await?;
    let login = Uuid::new_v4().to_string();
    backend.kept().logins.insert(login.clone(), Login { user, session });
    let mut answer = StatusCode::NO_CONTENT.into_response();
    // The session's cookie as Roost has made it: HttpOnly, with SameSite, and Secure where session.cookie_secure says so.
    let cookies = headers.get_all(header::SET_COOKIE);
    let is_secure = |cookie: &HeaderValue| cookie.to_str().is_ok_and(|it| it.to_ascii_lowercase().contains("; secure"));
    let secure = if cookies.iter().any(is_secure) { "; Secure" } else { "" };
    let own = format!("login={login}; Path=/; HttpOnly; SameSite=Lax{secure}");
    let own = HeaderValue::try_from(own).map_err(no_answer)?;
    for cookie in cookies.iter().cloned().chain([own]) {
        answer.headers_mut().append(header::SET_COOKIE, cookie);
    }
    Ok(answer)
}

async fn log_out(State(backend): Shared, headers: HeaderMap) -> Answer<Response> {
    backend.end(&headers).await?;
    let mut answer = StatusCode::NO_CONTENT.into_response();
    for gone in ["login=; Path=/; Max-Age=0", "session_id=; Path=/; Max-Age=0"] {
        answer.headers_mut().append(header::SET_COOKIE, HeaderValue::from_static(gone));
    }
    Ok(answer)
}

async fn me(State(backend): Shared, Login { user, .. }: Login) -> Json<Value> {
    Json(json!({"user": user, "nodes": backend.nodes}))
}

async fn read_notes(State(backend): Shared, _: Login) -> Json<Vec<Note>> {
    Json(backend.kept().notes.clone())
}

async fn add_note(
    State(backend): Shared,
    Login { user: by, .. }: Login,
    Json(Text { text }): Json<Text>,
) -> Answer<(StatusCode, Json<Note>)> {
    // Kept first, then told: whoever joins before loading the notes misses none.
    let note = {
        let notes = &mut backend.kept().notes;
        let note = Note { id: notes.len() + 1, text, by };
        notes.push(note.clone());
        note
    };
    backend.publish("notes:all", json!(note), &format!("{}-note-{}", backend.run, note.id)).await?;
    Ok((StatusCode::CREATED, Json(note)))
}

async fn ask(
    State(backend): Shared,
    Login { user, .. }: Login,
    Json(Text { text }): Json<Text>,
) -> Answer<Json<Value>> {
    let group = format!("answer:{user}:{}", Uuid::new_v4());
    let begun = backend.publish(&group, json!({"question": text}), &group).await?;
    let answer = json!({"group": group, "since": {"epoch": begun["epoch"], "offset": 0}});
    tokio::spawn(async move {
        if let Err(Failed(status, words)) = backend.write(&group, &text).await {
            eprintln!("an answer ends early: {status} {words}");
        }
    });
    Ok(Json(answer))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let backend = Arc::new(Backend {
        nodes: env::var("ROOST_URLS")?.split(',').map(str::to_owned).collect(),
        key: env::var("ROOST_API_KEY")?,
        http: reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?,
        run: Uuid::new_v4(),
        kept: Mutex::default(),
    });
    let routes = Router::new()
        .route("/", get(async || Html(include_str!("page.html"))))
        .route("/login", post(log_in))
        .route("/logout", post(log_out))
        .route("/me", get(me))
        .route("/notes", get(read_notes).post(add_note))
        .route("/ask", post(ask))
        .with_state(backend);
    let port = env::var("PORT").map_or(Ok(9_000), |port| port.parse::<u16>())?;
    Ok(axum::serve(TcpListener::bind(("127.0.0.1", port)).await?, routes).await?)
}
