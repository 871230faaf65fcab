//! Who takes a connection. While the gateway is cut off from the registry, an endpoint's port may become another app's
//! (docs/adr/0010-identity-of-endpoints.md). So a new connection is first asked whose it is, where the app has promised to answer
//! (`identity_path`), and no request goes there unless the answer is the app's.

use std::time::Instant;

use http::header::{self, HeaderMap, HeaderName};
use http::{Request, StatusCode, Version};
use hyper::client::conn::http2::SendRequest;
use model::AppId;
use tokio::net::TcpStream;

use crate::body::RequestBody;
use crate::eject::Endpoint;
use crate::h2c;
use crate::http1::Http1;
use crate::shared::Shared;
use crate::table::{AppShared, Settings};
use crate::worker::Worker;

/// The field of the answer that names the app.
const NAME: HeaderName = HeaderName::from_static("x-caas-app");

/// What a new connection to an endpoint is asked before its first request.
pub(crate) struct Question<'a> {
    app: &'a AppId,
    path: &'a str,
    domain: &'a str,
}

impl<'a> Question<'a> {
    /// What has to be asked at the endpoint now; nothing where the app wants none, or the gateway knows whose the port is.
    pub(crate) fn of(
        shared: &'a Shared,
        app: &'a AppShared,
        settings: &'a Settings,
        endpoint: &Endpoint,
    ) -> Option<Self> {
        let path = settings.config.identity_path.as_str();
        if path.is_empty() || !settings.config.protocol.is_http() {
            return None;
        }
        // In this order: what the registry's return has taken away is marked before the copy counts as true.
        let asks = shared.is_outdated(Instant::now()) || endpoint.is_withdrawn() || endpoint.is_doubted();
        asks.then_some(Self {
            app: &app.id,
            path,
            domain: &shared.config.domain,
        })
    }

    /// Asks on a connection in HTTP/1.1. `Some`: it is the app's, and whether it takes a request now.
    pub(crate) async fn http1(&self, worker: &Worker, http1: &mut Http1) -> Option<bool> {
        worker.stats().identity_checks.add(1);
        let (parts, ()) = self.request(false)?.into_parts();
        let said = http1.ask(worker, &parts).await.ok()?;
        let proved = self.is_proved(said.status, &said.fields);
        worker.give_back(said.fields);
        proved.then_some(said.waits)
    }

    /// The same in HTTP/2, on a stream.
    pub(crate) async fn http2(&self, worker: &Worker, mut sender: SendRequest<RequestBody>) -> bool {
        worker.stats().identity_checks.add(1);
        let Some(request) = self.request(true) else {
            return false;
        };
        let answer = sender.send_request(request.map(|()| RequestBody::empty())).await;
        answer.is_ok_and(|answer| self.is_proved(answer.status(), answer.headers()))
    }

    /// Whether a connection that no request waits for is the app's.
    pub(crate) async fn is_answered(&self, worker: &Worker, endpoint: &Endpoint, stream: TcpStream) -> bool {
        if endpoint.h2c() {
            match h2c::sender(&worker.back, stream).await {
                Some(sender) => self.http2(worker, sender).await,
                None => false,
            }
        } else {
            self.http1(worker, &mut Http1::new(stream)).await.is_some()
        }
    }

    /// `None`: the path is none.
    fn request(&self, http2: bool) -> Option<Request<()>> {
        let host = format!("{}.{}", self.app, self.domain);
        let request = Request::builder().header(header::USER_AGENT, "caas-gateway");
        let request = if http2 {
            request
                .version(Version::HTTP_2)
                .uri(format!("http://{host}{}", self.path))
        } else {
            request.uri(self.path).header(header::HOST, host)
        };
        request.body(()).ok()
    }

    fn is_proved(&self, status: StatusCode, fields: &HeaderMap) -> bool {
        let mut names = fields.get_all(NAME).iter();
        let named = names.next().is_some_and(|name| name == self.app.as_str());
        status.is_success() && named && names.next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_name_proves() {
        let app: AppId = "hello".parse().expect("an app");
        let question = Question {
            app: &app,
            path: "/_ping?a=b",
            domain: "apps.example.com",
        };
        let proved = |status: u16, names: &[&str]| {
            let mut fields = HeaderMap::new();
            for name in names {
                fields.append(NAME, name.parse().expect("a value"));
            }
            question.is_proved(StatusCode::from_u16(status).expect("a status"), &fields)
        };
        assert!(proved(200, &["hello"]) && proved(204, &["hello"]));
        for status in [101, 301, 304, 404, 500] {
            assert!(!proved(status, &["hello"]), "{status}");
        }
        for names in [
            &[][..],
            &["other"],
            &["Hello"],
            &["hello2"],
            &["hello, other"],
            &["hello", "other"],
            &["hello", "hello"],
        ] {
            assert!(!proved(200, names), "{names:?}");
        }
        let one = question.request(false).expect("a request");
        assert_eq!(
            (one.uri().to_string().as_str(), &one.headers()["host"]),
            ("/_ping?a=b", &"hello.apps.example.com".parse().expect("a value"))
        );
        let two = question.request(true).expect("a request");
        assert_eq!(two.uri().to_string(), "http://hello.apps.example.com/_ping?a=b");
    }
}
