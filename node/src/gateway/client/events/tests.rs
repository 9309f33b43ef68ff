//! What a request says of where its reader stopped.

use axum::http::HeaderValue;

use super::*;
use crate::id::Epoch;

const PARAMETERS: [&str; 1] = [LAST_EVENT_ID_PARAMETER];

fn groups() -> Vec<GroupName> {
    vec![GroupName::parse("chat:a").unwrap()]
}

/// The place that a request has, or what is wrong with it.
fn read(in_query: &str, of_header: &[&str]) -> Result<Option<Position>, Vec<Vec<Loc>>> {
    let mut headers = HeaderMap::new();
    for id in of_header {
        headers.append(LAST_EVENT_ID, HeaderValue::from_bytes(id.as_bytes()).unwrap());
    }
    let mut query = Query::read(Some(in_query), &PARAMETERS);
    let places = places(&groups(), &headers, &mut query);
    let read = done(query, places).map(|places| places[0]);
    read.map_err(|error| {
        assert_eq!(error.status, StatusCode::UNPROCESSABLE_ENTITY);
        error.detail.into_iter().map(|problem| problem.loc).collect()
    })
}

#[test]
fn a_reader_goes_on_where_its_header_says_then_where_its_url_does() {
    let at = |offset| Ok(Some(Position { epoch: Epoch(7), offset }));
    let (one, two) = ("0000000000000007-1", "0000000000000007-2");
    let in_query = |id: &str| format!("last_event_id={id}");
    assert_eq!(read("", &[]), Ok(None));
    assert_eq!(read("last_event_id=", &[""]), Ok(None), "a page that has none yet");
    assert_eq!(read(&in_query(one), &[]), at(1));
    assert_eq!(read("", &[two]), at(2));
    // `EventSource` comes back to the URL that it began with.
    assert_eq!(read(&in_query(one), &[two]), at(2));
    assert_eq!(read(&in_query(one), &[""]), at(1));
}

#[test]
fn all_that_is_wrong_with_it_is_named() {
    let header = loc!["header", LAST_EVENT_ID];
    let in_query = loc!["query", LAST_EVENT_ID_PARAMETER];
    assert_eq!(read("", &["7-1"]), Err(vec![header.clone()]));
    assert_eq!(read("", &["\u{fc}"]), Err(vec![header.clone()]), "not ASCII");
    let one = "0000000000000007-1";
    assert_eq!(read("", &[one, one]), Err(vec![header.clone()]), "twice");
    assert_eq!(read("last_event_id=x", &[]), Err(vec![in_query.clone()]));
    assert_eq!(read("last_event_id=x", &["x"]), Err(vec![in_query, header]));
    assert_eq!(read("token=x", &[]), Err(vec![loc!["query", "token"]]), "no token in the URL");
}
