//! A container engine in memory, for tests and for fleets of any size. True to the port: ports are unique per fake host,
//! names are owned by one platform, containers end with exit codes, write logs and tell events.
//!
//! `fake://name?serve=1&launch_ms=50&cpu_millis=8000&memory_mb=16384`: with `serve` each container really listens on
//! its published address and answers any HTTP request with 200; `launch_ms` is how long a launch takes. The fakes of
//! a process live as long as it does; the first opening of a name decides its options.
//!
//! A container does what its first argument says: `exit N` ends at once with code N, `print N` writes N lines to each
//! stream and ends, `stubborn` ignores SIGTERM, anything else serves until it is stopped.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::engine::{Container, ContainerStats, ContainerStatus, EngineError, EngineEvent, LaunchSpec, LogLine};
use model::{ContainerId, InstanceId, PlatformId, Timestamp};
use rand::RngExt as _;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use url::Url;

mod port;
mod serve;

/// All fakes of this process by name.
static FAKES: LazyLock<Mutex<HashMap<String, Arc<FakeEngine>>>> = LazyLock::new(Mutex::default);

/// Lines kept per container; the oldest go first.
const MAX_LINES: usize = 1000;
/// Events kept for a slow listener before its stream ends with an error.
const MAX_EVENTS: usize = 4096;
const MIB: u64 = 1024 * 1024;

/// How a registry answers for an image. Images not told of are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FakeImage {
    /// On the host already.
    Present,
    /// In the registry, not yet on the host.
    InRegistry,
    /// Neither.
    Missing,
    /// The registry wants other credentials.
    Denied,
    /// The registry does not answer.
    RegistryDown,
}

/// One fake host.
#[derive(Debug)]
pub struct FakeEngine {
    name: String,
    options: Options,
    state: Mutex<State>,
    events: broadcast::Sender<(PlatformId, EngineEvent)>,
}

#[derive(Clone, Copy, Debug)]
struct Options {
    serve: bool,
    cpu_millis: u32,
    memory_mb: u32,
    launch: Duration,
}

#[derive(Debug, Default)]
struct State {
    containers: BTreeMap<String, Fake>,
    taken: HashSet<u16>,
    disk_full: bool,
    images: HashMap<String, FakeImage>,
    launch: Duration,
    pull: Duration,
    unreachable: bool,
    silent: bool,
    lost_answers: u32,
    /// Listeners that are ending: their ports are not free before.
    closing: Vec<JoinHandle<()>>,
    launches: u64,
    most_at_once: usize,
}

/// One container.
#[derive(Debug)]
struct Fake {
    id: ContainerId,
    spec: LaunchSpec,
    status: ContainerStatus,
    lines: Vec<LogLine>,
    /// Counts lines and the end of the container, for followers; its receiver also ends the server.
    changed: watch::Sender<u64>,
    server: Option<serve::Server>,
    usage: Option<ContainerStats>,
}

impl Fake {
    fn runs(&self) -> bool {
        matches!(self.status, ContainerStatus::Running { .. })
    }

    fn show(&self) -> Container {
        Container {
            id: self.id.clone(),
            instance: self.spec.instance.clone(),
            app: self.spec.app.clone(),
            status: self.status.clone(),
        }
    }

    fn say(&mut self, stderr: bool, text: &str) {
        if self.lines.len() == MAX_LINES {
            self.lines.remove(0);
        }
        self.lines.push(LogLine {
            at: Some(Timestamp::now()),
            stderr,
            text: text.to_owned(),
        });
        self.changed.send_modify(|n| *n += 1);
    }

    /// Ends it; gives what still listens for it, to be waited for by [`FakeEngine::settle`].
    #[must_use]
    fn end(&mut self, exit_code: i64, out_of_memory: bool) -> Option<JoinHandle<()>> {
        self.status = ContainerStatus::Exited {
            exit_code,
            out_of_memory,
        };
        self.changed.send_modify(|n| *n += 1);
        self.server.take().map(serve::Server::stop)
    }
}

fn container_name(spec: &LaunchSpec) -> String {
    format!("caas-{}-{}", spec.app, spec.instance)
}

fn random_id() -> ContainerId {
    const HEX: &[u8] = b"0123456789abcdef";
    let mut rng = rand::rng();
    let text: String = (0..64).map(|_| char::from(HEX[rng.random_range(0..16)])).collect();
    text.parse().expect("64 hexadecimal digits are a container id")
}

/// What a fake can be told, and asked, beside the port.
impl FakeEngine {
    /// The fake of that name in this process, made at first use with the defaults (nothing really listens, launches
    /// take no time, 8 cores, 16 GiB).
    pub fn named(name: &str) -> Arc<Self> {
        Self::get(
            name,
            Options {
                serve: false,
                cpu_millis: 8000,
                memory_mb: 16_384,
                launch: Duration::ZERO,
            },
        )
    }

    fn get(name: &str, options: Options) -> Arc<Self> {
        let mut fakes = FAKES.lock().unwrap_or_else(PoisonError::into_inner);
        let fake = fakes.entry(name.to_owned()).or_insert_with(|| {
            Arc::new(Self {
                name: name.to_owned(),
                options,
                state: Mutex::new(State {
                    launch: options.launch,
                    ..State::default()
                }),
                events: broadcast::Sender::new(MAX_EVENTS),
            })
        });
        Arc::clone(fake)
    }

    /// The fake at a `fake://` URL.
    ///
    /// # Errors
    /// [`EngineError::Other`] when the URL names no fake or has an unknown option.
    pub fn open(url: &str) -> Result<Arc<Self>, EngineError> {
        let bad = |why: String| EngineError::Other(format!("engine URL {url:?} is not valid: {why}"));
        let parsed = Url::parse(url).map_err(|e| bad(e.to_string()))?;
        let name = parsed
            .host_str()
            .filter(|h| !h.is_empty())
            .ok_or_else(|| bad("it names no fake host".into()))?;
        let mut options = Options {
            serve: false,
            cpu_millis: 8000,
            memory_mb: 16_384,
            launch: Duration::ZERO,
        };
        for (key, value) in parsed.query_pairs() {
            let number = || {
                value
                    .parse::<u32>()
                    .map_err(|_| bad(format!("{key} must be a whole number")))
            };
            match &*key {
                "serve" => options.serve = number()? != 0,
                "launch_ms" => options.launch = Duration::from_millis(number()?.into()),
                "cpu_millis" => options.cpu_millis = number()?,
                "memory_mb" => options.memory_mb = number()?,
                _ => return Err(bad(format!("there is no option {key:?}"))),
            }
        }
        Ok(Self::get(name, options))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unreachable(&self, message: &str) -> EngineError {
        EngineError::Unreachable {
            engine: format!("fake://{}", self.name),
            message: message.to_owned(),
        }
    }

    /// Every call fails at once, as with a closed port.
    pub fn set_unreachable(&self, unreachable: bool) {
        self.state().unreachable = unreachable;
    }

    /// No call is answered: each fails at its deadline, as with a host behind a cut cable.
    pub fn set_silent(&self, silent: bool) {
        self.state().silent = silent;
    }

    /// How long a launch takes from now on.
    pub fn set_launch_latency(&self, latency: Duration) {
        self.state().launch = latency;
    }

    /// The next `n` launches, restarts, stops and removals are done but not answered: they end as `Unreachable`.
    pub fn lose_answers(&self, n: u32) {
        self.state().lost_answers = n;
    }

    /// A foreign process takes the host port (`true`) or gives it back.
    pub fn take_port(&self, port: u16, taken: bool) {
        let mut state = self.state();
        if taken {
            state.taken.insert(port);
        } else {
            state.taken.remove(&port);
        }
    }

    /// Nothing can be written to its disk: no container is made.
    pub fn set_disk_full(&self, full: bool) {
        self.state().disk_full = full;
    }

    /// How long each pull of an image that is not on the host takes from now on.
    pub fn set_pull_latency(&self, latency: Duration) {
        self.state().pull = latency;
    }

    /// How the registry answers for `image` from now on.
    pub fn set_image(&self, image: &str, answer: FakeImage) {
        self.state().images.insert(image.to_owned(), answer);
    }

    /// The instance's container ends by itself. `false` if none of it runs.
    pub fn exit(&self, instance: &InstanceId, exit_code: i64, out_of_memory: bool) -> bool {
        let mut state = self.state();
        let Some(fake) = state
            .containers
            .values_mut()
            .find(|c| c.spec.instance == *instance && c.runs())
        else {
            return false;
        };
        let closing = fake.end(exit_code, out_of_memory);
        let platform = fake.spec.platform.clone();
        state.closing.extend(closing);
        drop(state);
        if out_of_memory {
            self.tell(&platform, instance, "oom");
        }
        self.tell(&platform, instance, "die");
        true
    }

    /// Somebody removes the instance's container by hand. `false` if there is none.
    pub fn remove_by_hand(&self, instance: &InstanceId) -> bool {
        let mut state = self.state();
        let name = state
            .containers
            .iter()
            .find(|(_, c)| c.spec.instance == *instance)
            .map(|(name, _)| name.clone());
        let Some(mut fake) = name.and_then(|name| state.containers.remove(&name)) else {
            return false;
        };
        let ran = fake.runs();
        state.closing.extend(fake.end(137, false));
        drop(state);
        if ran {
            self.tell(&fake.spec.platform, instance, "die");
        }
        self.tell(&fake.spec.platform, instance, "destroy");
        true
    }

    /// All containers end, as when the machine loses power; they are still there, exited, when it is back.
    pub fn power_cut(&self) {
        let mut state = self.state();
        let ended = state.containers.values_mut().filter(|c| c.runs());
        let closing: Vec<_> = ended.filter_map(|fake| fake.end(137, false)).collect();
        state.closing.extend(closing);
    }

    /// The instance's container writes a line.
    pub fn log(&self, instance: &InstanceId, stderr: bool, text: &str) {
        if let Some(fake) = self
            .state()
            .containers
            .values_mut()
            .find(|c| c.spec.instance == *instance)
        {
            fake.say(stderr, text);
        }
    }

    /// What the instance's container uses from now on.
    pub fn set_usage(&self, instance: &InstanceId, usage: ContainerStats) {
        if let Some(fake) = self
            .state()
            .containers
            .values_mut()
            .find(|c| c.spec.instance == *instance)
        {
            fake.usage = Some(usage);
        }
    }

    /// The specs of all containers that run, by container name.
    pub fn running(&self) -> Vec<LaunchSpec> {
        self.state()
            .containers
            .values()
            .filter(|c| c.runs())
            .map(|c| c.spec.clone())
            .collect()
    }

    /// Containers of any state and platform.
    pub fn container_count(&self) -> usize {
        self.state().containers.len()
    }

    /// Containers that were made since the beginning, and the most that were there at once.
    pub fn launch_counts(&self) -> (u64, usize) {
        let state = self.state();
        (state.launches, state.most_at_once)
    }

    fn tell(&self, platform: &PlatformId, instance: &InstanceId, action: &str) {
        let event = EngineEvent {
            instance: instance.clone(),
            action: action.to_owned(),
        };
        // No listener is no error.
        let _ = self.events.send((platform.clone(), event));
    }

    /// Fails as the host is told to fail, after at most `deadline`.
    async fn reach(&self, deadline: Duration) -> Result<(), EngineError> {
        let (unreachable, silent) = {
            let state = self.state();
            (state.unreachable, state.silent)
        };
        if unreachable {
            return Err(self.unreachable("connection refused"));
        }
        if silent {
            tokio::time::sleep(deadline).await;
            return Err(self.unreachable("no answer in time"));
        }
        Ok(())
    }

    /// The answer to something that was done, unless it gets lost.
    fn answer<T>(&self, value: T) -> Result<T, EngineError> {
        let mut state = self.state();
        if state.lost_answers > 0 {
            state.lost_answers -= 1;
            return Err(self.unreachable("the connection was lost before the answer"));
        }
        Ok(value)
    }

    /// Waits until the ports of ended containers are free.
    async fn settle(&self) {
        let closing = std::mem::take(&mut self.state().closing);
        for listener in closing {
            // It can only have ended.
            let _ = listener.await;
        }
    }

    /// Makes a container begin: it listens, or does what its command says and ends.
    async fn begin(&self, id: &ContainerId, spec: &LaunchSpec) -> Result<(), EngineError> {
        self.settle().await;
        let server = if self.options.serve {
            let text = format!("{} {} {}\n", spec.app, spec.version, spec.instance);
            Some(serve::serve(spec.host_ip, spec.host_port, text).await?)
        } else {
            None
        };
        let mut state = self.state();
        let Some(fake) = state.containers.values_mut().find(|c| c.id == *id) else {
            return Err(EngineError::NoSuchContainer(id.to_string()));
        };
        fake.status = ContainerStatus::Running {
            started_at: Timestamp::now(),
        };
        fake.server = server;
        let argument = |n: usize| spec.command.get(n).and_then(|a| a.parse::<i64>().ok()).unwrap_or(0);
        let ended = match spec.command.first().map(String::as_str) {
            Some("exit") => Some(argument(1)),
            Some("print") => {
                for n in 1..=argument(1).min(MAX_LINES as i64) {
                    fake.say(false, &format!("out {n}"));
                    fake.say(true, &format!("err {n}"));
                }
                Some(0)
            }
            _ => None,
        };
        if let Some(code) = ended {
            let closing = fake.end(code, false);
            state.closing.extend(closing);
        }
        drop(state);
        self.tell(&spec.platform, &spec.instance, "start");
        if ended.is_some() {
            self.tell(&spec.platform, &spec.instance, "die");
        }
        Ok(())
    }
}

impl State {
    fn by_id(&mut self, id: &ContainerId) -> Option<&mut Fake> {
        self.containers.values_mut().find(|c| c.id == *id)
    }

    /// Whether somebody other than `but` has the host port.
    fn port_is_taken(&self, port: u16, but: &str) -> bool {
        self.taken.contains(&port)
            || self
                .containers
                .iter()
                .any(|(name, c)| name != but && c.runs() && c.spec.host_port == port)
    }
}
