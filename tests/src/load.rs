//! Load: requests at a fixed rate whatever the answers do (open loop), with every failed and every slow one counted.
//! A latency counts from the planned moment of sending, so that a stall is not hidden by the requests it held up.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A request slower than this is counted as slow.
pub const SLOW: Duration = Duration::from_millis(500);
/// One in so many may be slow: the machine has a fleet to run beside the load. That none is, `make bench` shows.
const NOISE: usize = 20;

/// An HTTP client whose connections are kept, and which never repeats a request by itself.
pub type Http = Client<HttpConnector, Full<Bytes>>;

/// Makes such a client.
pub fn http() -> Http {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(Duration::from_secs(5)));
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(64)
        .pool_idle_timeout(Duration::from_secs(30))
        .retry_canceled_requests(false)
        .build(connector)
}

/// An answer to one request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// `x-instance`: who answered.
    pub instance: String,
    /// `x-version`
    pub version: String,
    /// All other headers.
    pub headers: hyper::HeaderMap,
    /// The body as text.
    pub body: String,
}

/// `GET path` of the app that answers to `domain`, through the gateway at `gateway`, within 10 s.
pub async fn get(http: &Http, gateway: SocketAddr, domain: &str, path: &str) -> Result<Answer, String> {
    get_with(http, gateway, domain, path, ("accept", "application/json")).await
}

/// The same with this header field alone.
pub async fn get_with(
    http: &Http,
    gateway: SocketAddr,
    domain: &str,
    path: &str,
    (name, value): (&str, &str),
) -> Result<Answer, String> {
    let request = Request::get(format!("http://{gateway}{path}"))
        .header("host", domain)
        .header(name, value)
        .body(Full::default())
        .map_err(|e| e.to_string())?;
    let work = async {
        let response = http.request(request).await.map_err(|e| chain(&e))?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(|e| chain(&e))?.to_bytes();
        let header = |name: &str| {
            parts
                .headers
                .get(name)
                .and_then(|v| v.to_str().ok())
                .unwrap_or_default()
                .to_owned()
        };
        Ok(Answer {
            status: parts.status.as_u16(),
            instance: header("x-instance"),
            version: header("x-version"),
            body: String::from_utf8_lossy(&body).into_owned(),
            headers: parts.headers,
        })
    };
    tokio::time::timeout(Duration::from_secs(10), work)
        .await
        .map_err(|_| "no answer within 10 s".to_owned())?
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

/// What came of one request of a load.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When it was to be sent, from the load's start.
    pub at: Duration,
    /// From then to the end of the answer.
    pub took: Duration,
    /// Who answered; why it failed.
    pub result: Result<(String, String), String>,
}

/// Load under way; dropping it ends it.
#[derive(Debug)]
pub struct Load {
    /// When it began.
    pub began: Instant,
    samples: Arc<Mutex<Vec<Sample>>>,
    stop: CancellationToken,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Load {
    /// Sends `rps` requests a second to `domain`, at the `gateways` in turn.
    pub fn start(gateways: &[SocketAddr], domain: &str, rps: u32) -> Self {
        let samples: Arc<Mutex<Vec<Sample>>> = Arc::default();
        let stop = CancellationToken::new();
        let began = Instant::now();
        let (gateways, domain) = (gateways.to_vec(), domain.to_owned());
        let (sink, stopped) = (samples.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let clients: Vec<(SocketAddr, Http)> = gateways.into_iter().map(|gateway| (gateway, http())).collect();
            let mut under_way = JoinSet::new();
            for n in 0u32.. {
                let at = Duration::from_secs(1) * n / rps;
                let due = tokio::time::Instant::from_std(began + at);
                if stopped
                    .run_until_cancelled(tokio::time::sleep_until(due))
                    .await
                    .is_none()
                {
                    break;
                }
                let (gateway, client) = clients[n as usize % clients.len()].clone();
                let (domain, sink) = (domain.clone(), sink.clone());
                under_way.spawn(async move {
                    let result = match get(&client, gateway, &domain, "/").await {
                        Ok(answer) if answer.status == 200 => Ok((answer.instance, answer.version)),
                        Ok(answer) => Err(format!("{} {}", answer.status, answer.body.trim())),
                        Err(error) => Err(error),
                    };
                    let took = began.elapsed().saturating_sub(at);
                    sink.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(Sample { at, took, result });
                });
                while under_way.try_join_next().is_some() {}
            }
            while under_way.join_next().await.is_some() {}
        });
        Self {
            began,
            samples,
            stop,
            task: Some(task),
        }
    }

    /// What has come back so far.
    pub fn so_far(&self) -> Report {
        Report {
            samples: self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Waits until `count` more requests are answered: load that flows.
    pub async fn flows(&self, count: usize) -> anyhow::Result<()> {
        let before = self.so_far().samples.len();
        let flowing = async || {
            let now = self.so_far().samples.len();
            if now >= before + count {
                Ok(())
            } else {
                Err(format!("{} answered", now - before))
            }
        };
        crate::wait::until("answers under load", Duration::from_secs(20), flowing).await?;
        Ok(())
    }

    /// Ends it, once all that was sent is answered.
    pub async fn end(mut self) -> Report {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            let _ = task.await;
        }
        self.so_far()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What came of a load.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// All requests, as they ended.
    pub samples: Vec<Sample>,
}

impl Report {
    /// The failed ones.
    pub fn failed(&self) -> Vec<&Sample> {
        self.samples.iter().filter(|s| s.result.is_err()).collect()
    }

    /// How many took longer than [`SLOW`].
    pub fn slow(&self) -> usize {
        self.samples.iter().filter(|s| s.took > SLOW).count()
    }

    /// Answers per instance.
    pub fn instances(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (instance, _) in self.samples.iter().filter_map(|s| s.result.as_ref().ok()) {
            *counts.entry(instance.clone()).or_default() += 1;
        }
        counts
    }

    /// The last moment (sent) at which `instance` answered.
    pub fn last_of(&self, instance: &str) -> Option<Duration> {
        let by = |s: &&Sample| s.result.as_ref().is_ok_and(|(i, _)| i == instance);
        self.samples.iter().filter(by).map(|s| s.at).max()
    }

    /// The first answer of one that had not answered before `since`.
    pub fn first_new_since(&self, since: Duration) -> Option<Duration> {
        let known: std::collections::HashSet<&str> = self
            .samples
            .iter()
            .filter(|s| s.at < since)
            .filter_map(|s| Some(s.result.as_ref().ok()?.0.as_str()))
            .collect();
        let fresh = |s: &&Sample| s.result.as_ref().is_ok_and(|(i, _)| !known.contains(i.as_str()));
        self.samples.iter().filter(fresh).map(|s| s.at + s.took).min()
    }

    /// The latency below which `share` (0-1) of the requests stay.
    pub fn percentile(&self, share: f64) -> Duration {
        let mut all: Vec<Duration> = self.samples.iter().map(|s| s.took).collect();
        all.sort_unstable();
        percentile(&all, share)
    }

    /// An error unless none failed and no more than [`NOISE`] allows were slow. `what` tells what went on meanwhile.
    pub fn flawless(&self, what: &str) -> anyhow::Result<()> {
        let failed = self.failed();
        let slow: Vec<_> = self
            .samples
            .iter()
            .filter(|s| s.took > SLOW)
            .map(|s| (s.at, s.took))
            .take(8)
            .collect();
        if failed.is_empty() && self.slow() * NOISE <= self.samples.len() && !self.samples.is_empty() {
            return Ok(());
        }
        anyhow::bail!(
            "{what}: of {} requests {} failed and {} were slow; first failures {:?}; first slow (at, took) {slow:?}",
            self.samples.len(),
            failed.len(),
            self.slow(),
            failed.iter().take(5).collect::<Vec<_>>()
        )
    }

    /// One line for people.
    pub fn line(&self) -> String {
        format!(
            "{} requests, {} failed, {} slow, p50 {:.1?}, p99 {:.1?}, max {:.1?}",
            self.samples.len(),
            self.failed().len(),
            self.slow(),
            self.percentile(0.5),
            self.percentile(0.99),
            self.percentile(1.0)
        )
    }
}

/// The value below which `share` (0-1) of the sorted `values` stay.
pub fn percentile(sorted: &[Duration], share: f64) -> Duration {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss
    )]
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted
        .get(rank.clamp(1, sorted.len().max(1)) - 1)
        .copied()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let ms: Vec<Duration> = (1..=20).map(Duration::from_millis).collect();
        assert_eq!(percentile(&ms, 0.5), Duration::from_millis(10));
        assert_eq!(percentile(&ms, 0.95), Duration::from_millis(19));
        assert_eq!(percentile(&ms, 1.0), Duration::from_millis(20));
        assert_eq!(percentile(&[], 0.5), Duration::ZERO);
    }

    #[test]
    fn a_failed_or_slow_request_is_a_flaw() {
        let sample = |took, result| Sample {
            at: Duration::ZERO,
            took,
            result,
        };
        let good = || Ok(("a".into(), "1".into()));
        assert!(
            Report {
                samples: vec![sample(Duration::ZERO, good())]
            }
            .flawless("")
            .is_ok()
        );
        assert!(
            Report {
                samples: vec![sample(SLOW * 2, good())]
            }
            .flawless("")
            .is_err()
        );
        assert!(
            Report {
                samples: vec![sample(Duration::ZERO, Err("x".into()))]
            }
            .flawless("")
            .is_err()
        );
        assert!(Report::default().flawless("").is_err());
    }
}
