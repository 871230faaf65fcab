//! Answers: rows with their ETag, lists by pages.

use axum::http::{HeaderValue, Uri, header};
use axum::response::{IntoResponse, Json, Response};
use model::Generation;
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

use super::error::{ApiError, Code};

/// `body` with the ETag of its row.
pub(super) fn tagged(generation: Generation, body: impl Serialize) -> Response {
    let mut response = Json(body).into_response();
    tag(&mut response, generation);
    response
}

/// Gives `response` the ETag of a row.
pub(super) fn tag(response: &mut Response, generation: Generation) {
    if let Ok(value) = HeaderValue::from_str(&format!("\"{generation}\"")) {
        response.headers_mut().insert(header::ETAG, value);
    }
}

/// Which page of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// Most items, 1-1,000; default 1,000.
    limit: Option<u32>,
    /// Where the page begins: from the `Link` header (`rel="next"`) of the page before.
    cursor: Option<String>,
}

/// Most items of a page.
const MAX_LIMIT: u32 = 1_000;

/// `limit` within its range, `default` when there is none.
pub(super) fn limit(limit: Option<u32>, default: u32) -> Result<u32, ApiError> {
    match limit.unwrap_or(default) {
        n @ 1..=MAX_LIMIT => Ok(n),
        _ => Err(ApiError::new(Code::InvalidRequest, "limit must be 1 to 1000").at("limit")),
    }
}

impl Page {
    /// The page that a query names beside other things.
    pub(super) fn new(limit: Option<u32>, cursor: Option<String>) -> Self {
        Self { limit, cursor }
    }

    /// The page of `items`, which come in a stable order, each known by its `key`.
    pub(super) fn of<T: Serialize>(
        &self,
        uri: &Uri,
        items: Vec<T>,
        key: impl Fn(&T) -> String,
    ) -> Result<Response, ApiError> {
        let limit = limit(self.limit, MAX_LIMIT)? as usize;
        let begin = match &self.cursor {
            None => 0,
            Some(cursor) => items.iter().position(|item| key(item) == *cursor).ok_or_else(|| {
                ApiError::new(
                    Code::InvalidRequest,
                    "cursor: that item has gone; begin again without a cursor",
                )
                .at("cursor")
            })?,
        };
        let next = items.get(begin + limit).map(&key);
        let page: Vec<T> = items.into_iter().skip(begin).take(limit).collect();
        let mut response = Json(page).into_response();
        if let Some(next) = next {
            let kept: Vec<&str> = uri
                .query()
                .unwrap_or_default()
                .split('&')
                .filter(|pair| !pair.is_empty() && !pair.starts_with("cursor="))
                .collect();
            // Keys are ids: safe in a URL as they are.
            let mut query = kept.join("&");
            if !query.is_empty() {
                query.push('&');
            }
            let link = format!("<{}?{query}cursor={next}>; rel=\"next\"", uri.path());
            if let Ok(value) = HeaderValue::from_str(&link) {
                response.headers_mut().insert(header::LINK, value);
            }
        }
        Ok(response)
    }
}
