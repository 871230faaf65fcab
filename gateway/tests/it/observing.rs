//! What is seen of a gateway from outside, and that docs/observing.md tells all of it and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use gateway::Config;
use model::AppConfig;
use model::config::Protocol;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::*;
use crate::tcp::free_port;
use crate::tls_support::Authority;

const DOCUMENT: &str = include_str!("../../../docs/observing.md");

/// The cells of the document's row whose first one is `name`.
fn row(name: &str) -> Vec<&'static str> {
    let begin = format!("| `{name}` |");
    let line = DOCUMENT.lines().find(|line| line.starts_with(&begin));
    let line = line.unwrap_or_else(|| panic!("docs/observing.md lacks a row for {name}"));
    line.trim_matches('|').split('|').map(str::trim).collect()
}

/// Each metric of the page with its kind, and the labels that its samples have.
fn exported(page: &str) -> BTreeMap<&str, (&str, BTreeSet<&str>)> {
    let heads = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let mut all: BTreeMap<&str, (&str, BTreeSet<&str>)> = heads
        .map(|head| head.split_once(' ').expect("a kind"))
        .map(|(name, kind)| (name, (kind, BTreeSet::new())))
        .collect();
    for sample in page.lines().filter(|line| !line.starts_with('#')) {
        let (name, labels) = sample.split_once(['{', ' ']).expect("a value");
        let base = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end).filter(|base| all.contains_key(base)));
        let (_, known) = all.get_mut(base.unwrap_or(name)).expect("a head");
        if sample.contains('{') {
            let labels = labels.split('}').next().expect("labels").split("\",");
            known.extend(
                labels
                    .filter_map(|label| label.split('=').next())
                    .filter(|l| *l != "le"),
            );
        }
    }
    all
}

/// Where `name` begins, the metrics that the document has.
fn documented() -> BTreeSet<&'static str> {
    let words = DOCUMENT.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let metrics = words.filter(|word| word.starts_with("caas_gateway_"));
    metrics.map(|m| m.strip_suffix("_bucket").unwrap_or(m)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_names_all_that_is_seen() {
    let authority = Authority::new();
    authority.put("hello", &["hello.localhost"]);
    let path = authority.dir.path().join("access.log");
    let port = free_port().await;
    let config = Config {
        access_log: path.to_str().unwrap().into(),
        tcp_ports: "1024-65535".parse().unwrap(),
        tcp_listen_ip: Some([127, 0, 0, 1].into()),
        ..authority.config()
    };
    let hello = Recorder::start("hello").await;
    let (database, _) = upstream(|mut stream, _| async move {
        let _ = stream.write_all(b"word").await;
    })
    .await;
    let mut tcp = AppConfig {
        protocol: Protocol::Tcp,
        ..AppConfig::default()
    };
    tcp.tcp.port = port;
    let entries = [("hello", "1", "a", hello.at), ("db", "1", "b", database)];
    let gateway = Gateway::with(config, &entries, &[("db", tcp)]).await;
    let browser = authority.browser();
    let answer = browser.get(gateway.https.unwrap(), "hello.localhost", "/").await;
    assert_eq!(answer.status, 200);
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut said = String::new();
    client.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "word");
    drop(client);
    gateway.reaches("caas_gateway_tcp_connections{app=\"db\"}", 0.0).await;

    let page = gateway.admin("/metrics").await.body;
    let exported = exported(&page);
    for (name, (kind, labels)) in &exported {
        let cells = row(name);
        assert_eq!(cells[1], *kind, "{name}");
        let told: BTreeSet<&str> = cells[2].split(", ").map(|l| l.trim_matches('`')).collect();
        let told: BTreeSet<&str> = told.into_iter().filter(|l| !l.is_empty()).collect();
        assert_eq!(&told, labels, "labels of {name}");
        assert!(!cells[3].is_empty(), "{name}");
    }
    for name in documented() {
        assert!(exported.contains_key(name), "there is no {name}");
    }
    for reason in page.lines().filter_map(|line| {
        let rest = line.strip_prefix("caas_gateway_own_answers_total{reason=\"")?;
        rest.split('"').next()
    }) {
        let status = row(reason)[1];
        assert!(status.parse::<u16>().is_ok(), "{reason}: {status}");
    }

    let lines = || std::fs::read_to_string(&path).unwrap_or_default();
    until("two lines", || lines().lines().count() == 2).await;
    let text = lines();
    let (of_tcp, of_http): (Vec<_>, Vec<_>) = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(line).unwrap())
        .partition(|line| line["protocol"] == "tcp");
    for field in of_http[0].keys() {
        row(field);
    }
    let paragraph = DOCUMENT
        .lines()
        .find(|line| line.starts_with("Connections of TCP apps"));
    for field in of_tcp[0].keys() {
        let named = format!("`{field}`");
        assert!(
            paragraph.is_some_and(|p| p.contains(&named)),
            "the line of a connection has {field}"
        );
    }
}
