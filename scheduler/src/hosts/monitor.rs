//! The monitor of a host: pings beside the event stream (a vanished host leaves the stream open and silent), and a
//! full list at connect, after every event, after every reconnect and every 30 s.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use model::engine::{Engine, EngineError};
use model::store::Outcome;
use model::{EventKind, Host, HostChange, HostName, NewEvent, PlatformId, Timestamp};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use crate::converge::{ConvergeConfig, Fleet, Observation};

/// Between two pings, and the deadline of each.
const PING: Duration = Duration::from_secs(2);
/// Lists after an event: the first one soon, so that events that come together are answered by one; more of them later,
/// because Docker tells `die` before it has cleaned up, and its list says `running` until it has.
const AFTER_EVENT: [Duration; 4] = [
    Duration::from_millis(20),
    Duration::from_millis(120),
    Duration::from_millis(500),
    Duration::from_millis(2_000),
];
/// Lists are taken this often without any event: events may be lost.
const LIST_EVERY: Duration = Duration::from_secs(30);
/// Deadlines of opening the event stream and of a list.
const EVENTS_DEADLINE: Duration = Duration::from_secs(5);
const LIST_DEADLINE: Duration = Duration::from_secs(10);
/// Between two tries to reach a host that does not answer.
const RETRY: Duration = Duration::from_secs(1);
/// How often the list of hosts is read for hosts that came or went.
const HOSTS_EVERY: Duration = Duration::from_secs(1);

/// Keeps a monitor running for each host of the store, until `shutdown`.
pub(crate) async fn watch_all(
    config: Arc<ConvergeConfig>,
    fleet: Arc<Fleet>,
    platform: PlatformId,
    shutdown: CancellationToken,
) {
    let mut monitors: HashMap<HostName, (String, DropGuard)> = HashMap::new();
    let mut tick = interval(HOSTS_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = shutdown.cancelled() => return,
        }
        let Ok(hosts) = fleet.store.host_list().await else {
            continue;
        };
        let names: HashSet<HostName> = hosts.iter().map(|h| h.name.clone()).collect();
        monitors.retain(|name, _| names.contains(name));
        fleet.retain(&names);
        for host in hosts {
            if monitors.get(&host.name).is_some_and(|(url, _)| *url == host.engine) {
                continue;
            }
            let stop = shutdown.child_token();
            monitors.insert(host.name.clone(), (host.engine.clone(), stop.clone().drop_guard()));
            let monitor = Monitor {
                config: Arc::clone(&config),
                fleet: Arc::clone(&fleet),
                platform: platform.clone(),
                host,
            };
            tokio::spawn(async move {
                tokio::select! {
                    () = monitor.run() => {}
                    () = stop.cancelled() => {}
                }
            });
        }
    }
}

struct Monitor {
    config: Arc<ConvergeConfig>,
    fleet: Arc<Fleet>,
    platform: PlatformId,
    /// The host as it was when the monitor began; only its name and engine are used.
    host: Host,
}

impl Monitor {
    async fn run(self) {
        let mut last_answer = Timestamp::now();
        let mut noted_down = false;
        loop {
            let error = match self.fleet.engine(&self.host) {
                Ok(engine) => self.watch(&*engine, &mut last_answer).await,
                Err(error) => error,
            };
            let silent = Timestamp::now().since(last_answer);
            tracing::debug!(host = %self.host.name, %error, "the host's engine does not answer");
            if silent >= self.config.host_down_after() {
                self.fleet.unobserve(&self.host.name);
                // Noted before, and up again: another scheduler reaches it, and its silence towards this one says little.
                let since = if noted_down { Timestamp::now() } else { last_answer };
                noted_down |= self.note_down(since, &error).await;
            } else {
                noted_down = false;
            }
            sleep(RETRY).await;
        }
    }

    /// Observes the host until its engine stops answering; why it did.
    async fn watch(&self, engine: &dyn Engine, last_answer: &mut Timestamp) -> EngineError {
        let bell = self.fleet.bell(&self.host.name);
        let events = match timeout(EVENTS_DEADLINE, engine.events(&self.platform)).await {
            Ok(Ok(events)) => events,
            Ok(Err(error)) => return error,
            Err(_) => return self.silent("it sent no events"),
        };
        // Events that come while the list is taken are kept by the stream: nothing falls between.
        if let Err(error) = self.list(engine).await {
            return error;
        }
        *last_answer = Timestamp::now();
        self.note_up().await;

        let mut events = events;
        let mut ping = interval(PING);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut list_at = Instant::now() + LIST_EVERY;
        let mut last_event = Instant::now();
        let mut up_checked = Instant::now();
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(_)) => {
                        last_event = Instant::now();
                        list_at = list_at.min(last_event + AFTER_EVENT[0]);
                    }
                    Some(Err(error)) => return error,
                    None => return self.silent("its event stream ended"),
                },
                () = bell.notified() => list_at = list_at.min(Instant::now() + AFTER_EVENT[0]),
                () = sleep_until(list_at) => {
                    let begun = Instant::now();
                    if let Err(error) = self.list(engine).await {
                        return error;
                    }
                    *last_answer = Timestamp::now();
                    let later = AFTER_EVENT.into_iter().map(|after| last_event + after).find(|at| *at > begun);
                    list_at = later.unwrap_or(begun + LIST_EVERY);
                }
                _ = ping.tick() => {
                    match timeout(PING, engine.ping()).await {
                        Ok(Ok(())) => *last_answer = Timestamp::now(),
                        Ok(Err(error)) => return error,
                        Err(_) => return self.silent("it did not answer a ping within 2 s"),
                    }
                    // Another scheduler may have noted it as down.
                    if up_checked.elapsed() > Duration::from_secs(5) {
                        up_checked = Instant::now();
                        self.note_up().await;
                    }
                }
            }
        }
    }

    fn silent(&self, message: &str) -> EngineError {
        EngineError::Unreachable {
            engine: self.host.engine.clone(),
            message: message.into(),
        }
    }

    async fn list(&self, engine: &dyn Engine) -> Result<(), EngineError> {
        let begun_at = Timestamp::now();
        let containers = timeout(LIST_DEADLINE, engine.list(&self.platform))
            .await
            .unwrap_or_else(|_| Err(self.silent("it did not list its containers within 10 s")))?;
        self.fleet.observe(
            &self.host.name,
            Observation {
                begun_at,
                containers: containers.into_iter().map(|c| (c.instance.clone(), c)).collect(),
            },
        );
        Ok(())
    }

    async fn note_up(&self) {
        let Ok(Some(host)) = self.fleet.store.host_fetch(&self.host.name).await else {
            return;
        };
        let Some(since) = host.down_since else { return };
        let event = NewEvent::new(
            EventKind::Host,
            "scheduler",
            format!("host {} answers again; it was down since {since}", host.name),
        )
        .about_host(&host.name);
        self.update(&host, &HostChange::Up, &event).await;
        info!(host = %host.name, "the host answers again");
    }

    /// Notes that the host is down since `since`, unless somebody has; whether it did.
    async fn note_down(&self, since: Timestamp, error: &EngineError) -> bool {
        let Ok(Some(host)) = self.fleet.store.host_fetch(&self.host.name).await else {
            return false;
        };
        if host.down_since.is_some() {
            return false;
        }
        let event = NewEvent::new(
            EventKind::Host,
            "scheduler",
            format!("host {} is down: {error}", host.name),
        )
        .about_host(&host.name);
        self.update(&host, &HostChange::Down(since), &event).await;
        warn!(host = %host.name, %error, "the host is down");
        true
    }

    /// Conflicts and errors need no answer: the next round sees what is so then.
    async fn update(&self, host: &Host, change: &HostChange, event: &NewEvent) {
        match self
            .fleet
            .store
            .host_update(host, change, Some(event), Timestamp::now())
            .await
        {
            Ok(Outcome::Updated(_)) => self.fleet.changed.notify_one(),
            Ok(_) => {}
            Err(error) => warn!(host = %host.name, %error, "the host's state could not be noted"),
        }
    }
}
