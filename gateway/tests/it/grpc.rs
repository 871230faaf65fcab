//! gRPC through the gateway, with a client and a server of other hands: all four kinds of calls, and how they fail.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf as _, BufMut as _};
use futures::channel::mpsc;
use futures::stream::BoxStream;
use futures::{SinkExt as _, StreamExt as _};
use http::uri::PathAndQuery;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::h2c::h2c;
use crate::support::*;

/// Messages are text as it is.
#[derive(Clone, Copy, Default)]
struct Text;

impl Codec for Text {
    type Encode = String;
    type Decode = String;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Text {
    type Item = String;
    type Error = Status;
    fn encode(&mut self, text: String, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(text.as_bytes());
        Ok(())
    }
}

impl Decoder for Text {
    type Item = String;
    type Error = Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<String>, Status> {
        let text = from.copy_to_bytes(from.remaining());
        Ok(Some(String::from_utf8_lossy(&text).into_owned()))
    }
}

/// Counts the calls that are under way.
struct Call(Arc<AtomicUsize>);

impl Call {
    fn begin(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(open))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

type Texts = BoxStream<'static, Result<String, Status>>;

async fn unary(request: Request<String>, open: Arc<AtomicUsize>) -> Result<Response<String>, Status> {
    let _call = Call::begin(&open);
    match request.get_ref().as_str() {
        "fail" => Err(Status::failed_precondition("not 100 % today")),
        "never" => std::future::pending().await,
        "deadline" => {
            let value = request
                .metadata()
                .get("grpc-timeout")
                .map(|v| v.to_str().unwrap().to_owned());
            Ok(Response::new(value.unwrap_or_default()))
        }
        text => {
            let mut answer = Response::new(text.to_uppercase());
            answer.metadata_mut().insert("x-from", "app".parse().unwrap());
            Ok(answer)
        }
    }
}

/// As many messages as asked for, then the status `aborted`.
async fn down(request: Request<String>) -> Result<Response<Texts>, Status> {
    let n: u32 = request
        .get_ref()
        .parse()
        .map_err(|_| Status::invalid_argument("a number"))?;
    let numbers = futures::stream::iter((0..n).rev().map(|i| Ok(i.to_string())));
    let end = futures::stream::once(async { Err(Status::aborted("that was all")) });
    Ok(Response::new(numbers.chain(end).boxed()))
}

async fn join(request: Request<Streaming<String>>) -> Result<Response<String>, Status> {
    let mut texts = request.into_inner();
    let mut all = String::new();
    while let Some(text) = texts.message().await? {
        all.push_str(&text);
    }
    Ok(Response::new(all))
}

/// Each message comes back at once.
async fn talk(request: Request<Streaming<String>>, open: Arc<AtomicUsize>) -> Result<Response<Texts>, Status> {
    let call = Call::begin(&open);
    let texts = request.into_inner().map(move |text| {
        let _call = &call;
        text.map(|t| format!("{t}!"))
    });
    Ok(Response::new(texts.boxed()))
}

/// A gRPC server, and how many calls are under way at it.
async fn server() -> (SocketAddr, Arc<AtomicUsize>) {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let at = incoming.local_addr().unwrap();
    let open = Arc::new(AtomicUsize::new(0));
    let calls = Arc::clone(&open);
    let service = tower::service_fn(move |request: http::Request<tonic::body::Body>| {
        let (one, two) = (Arc::clone(&calls), Arc::clone(&calls));
        async move {
            let mut grpc = tonic::server::Grpc::new(Text);
            let answer = match request.uri().path() {
                "/t.Test/Unary" => {
                    grpc.unary(tower::service_fn(move |r| unary(r, Arc::clone(&one))), request)
                        .await
                }
                "/t.Test/Down" => grpc.server_streaming(tower::service_fn(down), request).await,
                "/t.Test/Join" => grpc.client_streaming(tower::service_fn(join), request).await,
                "/t.Test/Talk" => {
                    grpc.streaming(tower::service_fn(move |r| talk(r, Arc::clone(&two))), request)
                        .await
                }
                _ => Status::unimplemented("no such call").into_http(),
            };
            Ok::<_, Infallible>(answer)
        }
    });
    tokio::spawn(Server::builder().serve_with_incoming(service, incoming));
    (at, open)
}

type Client = tonic::client::Grpc<Channel>;

async fn client(gateway: &Gateway, host: &str) -> Client {
    let channel = Endpoint::from_shared(format!("http://{}", gateway.http))
        .unwrap()
        .origin(format!("http://{host}").parse().unwrap())
        .connect_lazy();
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    client
}

fn path(name: &'static str) -> PathAndQuery {
    PathAndQuery::from_static(name)
}

async fn call(client: &mut Client, text: &str) -> Result<Response<String>, Status> {
    client.ready().await.unwrap();
    client
        .unary(Request::new(text.to_owned()), path("/t.Test/Unary"), Text)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn all_four_kinds_of_calls() {
    let (at, _) = server().await;
    let gateway = Gateway::hello_with(config(), &[at], h2c()).await;
    let mut client = client(&gateway, "hello.localhost").await;

    let answer = call(&mut client, "abc").await.unwrap();
    assert_eq!(
        (answer.get_ref().as_str(), answer.metadata().get("x-from")),
        ("ABC", Some(&"app".parse().unwrap()))
    );
    let status = call(&mut client, "fail").await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::FailedPrecondition, "not 100 % today")
    );

    client.ready().await.unwrap();
    let numbers = client
        .server_streaming(Request::new("1000".to_owned()), path("/t.Test/Down"), Text)
        .await
        .unwrap();
    let got: Vec<_> = numbers.into_inner().collect().await;
    assert_eq!(got.len(), 1_001);
    assert_eq!(got[0].as_deref().unwrap(), "999");
    let status = got[1_000].as_ref().unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Aborted, "that was all"),
        "the trailers"
    );

    client.ready().await.unwrap();
    let parts = futures::stream::iter((0..500).map(|i| format!("{i},")));
    let all = client
        .client_streaming(Request::new(parts), path("/t.Test/Join"), Text)
        .await
        .unwrap();
    assert_eq!(all.get_ref().split(',').count(), 501);

    client.ready().await.unwrap();
    let (mut say, said) = mpsc::channel(1);
    let answers = client
        .streaming(Request::new(said), path("/t.Test/Talk"), Text)
        .await
        .unwrap();
    let mut answers = answers.into_inner();
    for i in 0..100 {
        // Each answer arrives before the next question is asked: nothing waits for more.
        say.send(i.to_string()).await.unwrap();
        assert_eq!(answers.message().await.unwrap().unwrap(), format!("{i}!"));
    }
    drop(say);
    assert_eq!(answers.message().await.unwrap(), None, "a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn deadlines_and_cancelled_calls_reach_the_app() {
    let (at, open) = server().await;
    let gateway = Gateway::hello_with(config(), &[at], h2c()).await;
    let mut client = client(&gateway, "hello.localhost").await;
    let within = |text: &str, time| {
        let mut request = Request::new(text.to_owned());
        request.set_timeout(time);
        request
    };
    let answer = client
        .unary(
            within("deadline", Duration::from_millis(4_321)),
            path("/t.Test/Unary"),
            Text,
        )
        .await
        .unwrap();
    let passed_on = answer.get_ref();
    assert!(passed_on.starts_with("4321"), "{passed_on}");

    let start = Instant::now();
    client.ready().await.unwrap();
    let late = client
        .unary(within("never", Duration::from_millis(200)), path("/t.Test/Unary"), Text)
        .await;
    assert!(late.is_err() && start.elapsed() < Duration::from_secs(5));
    until("the app's call has ended", || open.load(Ordering::SeqCst) == 0).await;

    client.ready().await.unwrap();
    let (mut say, said) = mpsc::channel(1);
    let answers = client
        .streaming(Request::new(said), path("/t.Test/Talk"), Text)
        .await
        .unwrap();
    let mut answers = answers.into_inner();
    say.send("a".to_owned()).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap(), "a!");
    assert_eq!(open.load(Ordering::SeqCst), 1);
    drop((say, answers));
    until("the app hears that the client has left", || {
        open.load(Ordering::SeqCst) == 0
    })
    .await;
    assert_eq!(call(&mut client, "still there").await.unwrap().get_ref(), "STILL THERE");
    let routes = gateway.admin("/routes").await.body;
    assert!(routes.contains("\"failures\":0"), "{routes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_gateway_says_itself_is_a_status() {
    let refused = refusing().await;
    let (at, _) = server().await;
    let gateway = Gateway::with(
        config(),
        &[
            ("dead", "1", "a", refused),
            ("half", "1", "b", refused),
            ("half", "1", "c", at),
        ],
        &[("dead", h2c()), ("half", h2c()), ("empty", h2c())],
    )
    .await;
    for (host, code, reason) in [
        ("nobody.localhost", Code::Unimplemented, "unknown_app"),
        ("empty.localhost", Code::Unavailable, "no_endpoints"),
        ("dead.localhost", Code::Unavailable, "connect_failed"),
    ] {
        let status = call(&mut client(&gateway, host).await, "abc").await.unwrap_err();
        assert_eq!(
            (status.code(), status.metadata().get("x-caas-reason")),
            (code, Some(&reason.parse().unwrap())),
            "{host}"
        );
    }
    for _ in 0..4 {
        let answer = call(&mut client(&gateway, "half.localhost").await, "abc")
            .await
            .unwrap();
        assert_eq!(answer.get_ref(), "ABC", "a dead endpoint costs nobody a call");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_below_a_path() {
    let (at, _) = server().await;
    let mut app = h2c();
    app.domains = vec!["shop.test/api".to_owned()];
    app.strip_prefix = true;
    let gateway = Gateway::with(config(), &[("grpc", "1", "c0", at)], &[("grpc", app)]).await;
    let mut client = client(&gateway, "shop.test").await;
    let below = path("/api/t.Test/Unary");
    let answer = client.unary(Request::new("abc".to_owned()), below, Text).await.unwrap();
    assert_eq!(answer.get_ref(), "ABC");
    client.ready().await.unwrap();
    let beside = client
        .unary(Request::new("abc".to_owned()), path("/t.Test/Unary"), Text)
        .await;
    assert_eq!(
        beside.unwrap_err().code(),
        Code::Unimplemented,
        "nobody has the rest of the host"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_dies_within_a_stream_never_ends_it_cleanly() {
    let (at, _) = upstream(|stream, _| async move {
        let Ok(mut connection) = h2::server::handshake(stream).await else {
            return;
        };
        if let Some(Ok((_, mut respond))) = connection.accept().await {
            let head = http::Response::builder()
                .header("content-type", "application/grpc")
                .body(())
                .unwrap();
            let mut body = respond.send_response(head, false).unwrap();
            let message = bytes::Bytes::from_static(b"\0\0\0\0\x03one");
            body.send_data(message, false).unwrap();
            let dies = tokio::time::sleep(Duration::from_millis(100));
            tokio::select! { _ = connection.accept() => {}, () = dies => {} }
        }
    })
    .await;
    let gateway = Gateway::hello_with(config(), &[at], h2c()).await;
    let mut client = client(&gateway, "hello.localhost").await;
    let texts = client
        .server_streaming(Request::new("1".to_owned()), path("/t.Test/Down"), Text)
        .await
        .unwrap();
    let got: Vec<_> = texts.into_inner().collect().await;
    assert_eq!(got[0].as_deref().unwrap(), "one");
    assert!(got[1].is_err());
}
