//! The hand-over of a gateway's sockets to a new process (SIGUSR2): the program's file is started again with the same arguments
//! and the listening sockets, by systemd's protocol (`LISTEN_FDS`, `LISTEN_FDNAMES`, `NOTIFY_SOCKET`; sd_listen_fds(3),
//! sd_notify(3)). When the new process says that it serves, this one drains. Until then, and when it fails, this one serves on.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use gateway::OpenPorts;
use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::exit::Failure;

/// How long a new process may take until it serves: it reads the registry first.
const SERVES_WITHIN: Duration = Duration::from_secs(60);
/// The first descriptor that is handed over (sd_listen_fds(3)).
const FIRST: i32 = 3;

/// Under which name the ports of TCP apps are handed over; which is whose follows from their numbers.
pub(crate) const TCP: &str = "tcp";

/// Sockets that another process gave to this one, by name, in order.
#[derive(Debug, Default)]
pub(crate) struct Inherited(Vec<(String, TcpListener)>);

impl Inherited {
    /// Takes what the environment names; nothing when this process was not given any.
    pub(crate) fn take() -> Result<Self, Failure> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut given = ListenFd::from_env();
        let mut sockets = Vec::with_capacity(given.len());
        for (i, name) in (0..given.len()).zip(names.split(':').chain(std::iter::repeat(""))) {
            let broken =
                |e: std::io::Error| Failure::error(format!("inherited socket {i} ({name}) can't be used: {e}"));
            if let Some(listener) = given.take_tcp_listener(i).map_err(broken)? {
                listener.set_nonblocking(true).map_err(broken)?;
                sockets.push((name.to_owned(), listener));
            }
        }
        Ok(Self(sockets))
    }

    /// All sockets of that name.
    pub(crate) fn named(&mut self, name: &str) -> Vec<TcpListener> {
        let (named, rest) = std::mem::take(&mut self.0).into_iter().partition(|(n, _)| n == name);
        self.0 = rest;
        let named: Vec<(String, TcpListener)> = named;
        named.into_iter().map(|(_, listener)| listener).collect()
    }
}

/// This process serves: writes its id to `pid_file`, and tells the process that gave its sockets, or systemd.
pub(crate) fn serves(pid_file: Option<&Path>) {
    if let Some(path) = pid_file
        && let Err(error) = std::fs::write(path, format!("{}\n", std::process::id()))
    {
        tracing::error!(%error, path = %path.display(), "the process id can't be written (gateway.pid_file)");
    }
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::warn!(%error, "who started this process can't be told that it serves");
    }
}

/// Beside `pid_file`: why the last hand-over failed, as one line; there is none while that is not so.
pub(crate) fn why_not(pid_file: &Path) -> PathBuf {
    let mut name = pid_file.as_os_str().to_owned();
    name.push(".failed");
    name.into()
}

/// This process's own sockets, to be handed over.
#[derive(Debug)]
pub(crate) struct Handover {
    sockets: Vec<(&'static str, OwnedFd)>,
    /// Those of TCP apps, which come and go.
    ports: OpenPorts,
    /// Beside it failures are told.
    pid_file: Option<PathBuf>,
}

impl Handover {
    /// Keeps a second descriptor of each socket; those of `ports` are taken when the time has come.
    pub(crate) fn of<'a>(
        sockets: impl Iterator<Item = (&'static str, &'a TcpListener)>,
        ports: OpenPorts,
        pid_file: Option<PathBuf>,
    ) -> Result<Self, Failure> {
        let sockets = sockets
            .map(|(name, socket)| Ok((name, socket.try_clone()?.into())))
            .collect::<std::io::Result<_>>()
            .map_err(|e| Failure::error(format!("a socket can't be kept for a successor: {e}")))?;
        Ok(Self {
            sockets,
            ports,
            pid_file,
        })
    }

    /// On each SIGUSR2 starts a successor; cancels `handed_over` and ends when one serves. Ends at `shutdown` too, since a socket
    /// that is kept here would still take connections that nobody accepts.
    pub(crate) async fn run(self, handed_over: CancellationToken, shutdown: CancellationToken) -> Result<(), Failure> {
        let mut asked = signal(SignalKind::user_defined2())
            .map_err(|e| Failure::error(format!("signals can't be received: {e}")))?;
        loop {
            tokio::select! {
                _ = asked.recv() => {}
                () = shutdown.cancelled() => return Ok(()),
            }
            self.tell_failure(None);
            match self.start().await {
                Ok(successor) => {
                    tracing::info!(successor, "another process serves");
                    handed_over.cancel();
                    return Ok(());
                }
                Err(error) => {
                    tracing::error!(%error, "no hand-over: this process serves on");
                    self.tell_failure(Some(&error));
                }
            }
        }
    }

    /// Writes down why a hand-over failed, for who has asked for it; `None`: none has failed since.
    fn tell_failure(&self, error: Option<&str>) {
        let Some(path) = self.pid_file.as_deref().map(why_not) else {
            return;
        };
        let told = match error {
            Some(error) => std::fs::write(&path, format!("{error}\n")),
            None => match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            },
        };
        if let Err(error) = told {
            tracing::warn!(%error, path = %path.display(), "a hand-over's outcome can't be written");
        }
    }

    /// Starts a successor and waits until it serves; its process id.
    async fn start(&self) -> Result<u32, String> {
        let heard = Notices::bind().map_err(|e| format!("notices of a new process can't be received: {e}"))?;
        let mut child = self
            .command(&heard.path)
            .and_then(|mut command| command.spawn())
            .map_err(|e| format!("a new process can't be started: {e}"))?;
        tracing::info!(successor = child.id(), "hand-over begins");
        let outcome = tokio::time::timeout(SERVES_WITHIN, heard.ready(&mut child)).await;
        let failed = match outcome {
            Ok(Ok(())) => {
                let id = child.id();
                // It outlives this process, which must not wait for it; a thread goes with the process.
                std::thread::spawn(move || child.wait());
                return Ok(id);
            }
            Ok(Err(error)) => error,
            Err(_) => format!("the new process does not serve after {} s", SERVES_WITHIN.as_secs()),
        };
        // It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
        Err(failed)
    }

    fn command(&self, notices: &Path) -> std::io::Result<Command> {
        let mut arguments = std::env::args_os();
        // The name under which this program was started, not the file that runs: a new version has taken its place.
        let program = arguments
            .next()
            .map_or_else(std::env::current_exe, |name| Ok(name.into()))?;
        let mut sockets = Vec::with_capacity(self.sockets.len());
        for (name, socket) in &self.sockets {
            sockets.push((*name, socket.try_clone()?));
        }
        sockets.extend(self.ports.sockets()?.into_iter().map(|socket| (TCP, socket)));
        let names: Vec<&str> = sockets.iter().map(|(name, _)| *name).collect();
        let names = names.join(":");
        let count = sockets.len().to_string();
        let mappings: Vec<FdMapping> = (FIRST..)
            .zip(sockets)
            .map(|(child_fd, (_, parent_fd))| FdMapping { parent_fd, child_fd })
            .collect();
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("LISTEN_FDS", count)
            .env("LISTEN_FDNAMES", names)
            .env_remove("LISTEN_PID")
            .env("NOTIFY_SOCKET", notices);
        command.fd_mappings(mappings).map_err(std::io::Error::other)?;
        Ok(command)
    }
}

/// A socket on which a successor says that it serves (sd_notify(3)); its file goes with it.
#[derive(Debug)]
struct Notices {
    socket: tokio::net::UnixDatagram,
    path: PathBuf,
}

impl Notices {
    fn bind() -> std::io::Result<Self> {
        let name = format!("caas-{}-{:016x}.notify", std::process::id(), rand::random::<u64>());
        let path = std::env::temp_dir().join(name);
        let socket = UnixDatagram::bind(&path)?;
        socket.set_nonblocking(true)?;
        let socket = tokio::net::UnixDatagram::from_std(socket)?;
        Ok(Self { socket, path })
    }

    /// Until the successor serves, or has ended.
    async fn ready(&self, child: &mut Child) -> Result<(), String> {
        let mut look = tokio::time::interval(Duration::from_millis(50));
        let mut notice = [0; 256];
        loop {
            tokio::select! {
                received = self.socket.recv(&mut notice) => {
                    let n = received.map_err(|e| format!("its notice can't be read: {e}"))?;
                    if notice[..n].split(|b| *b == b'\n').any(|line| line == b"READY=1") {
                        return Ok(());
                    }
                }
                _ = look.tick() => {
                    if let Ok(Some(status)) = child.try_wait() {
                        return Err(format!("the new process ended ({status}); its log says why"));
                    }
                }
            }
        }
    }
}

impl Drop for Notices {
    fn drop(&mut self) {
        // Left behind it would only be an unused name.
        let _ = std::fs::remove_file(&self.path);
    }
}
