//! Bringing a configuration to HAProxy: beside the old one, checked by HAProxy's own program, put in its place, told.
//! At each line the file that HAProxy reads is a whole and checked one.

use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::config::Config;
use crate::render::Rendered;

/// Most characters of a command's output that are told.
const TOLD: usize = 2_000;

/// Why HAProxy does not serve by the new configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    #[error("the configuration can't be written: {0}")]
    Write(io::Error),
    /// The old one stays.
    #[error("HAProxy refuses the configuration: {0}")]
    Refused(String),
    /// The new one lies there; HAProxy has not taken it up.
    #[error("HAProxy could not be made to read its configuration: {0}")]
    Reload(String),
}

/// Checks the configuration and puts it in the place of the old one.
pub(crate) async fn put(config: &Config, rendered: &Rendered) -> Result<(), Failed> {
    let beside = with_suffix(&config.out, ".tmp");
    let files = [
        (rendered.map_path.clone(), rendered.map.clone()),
        (beside.clone(), rendered.text.clone()),
    ];
    let written = tokio::task::spawn_blocking(move || files.iter().try_for_each(|(path, text)| write(path, text)));
    match written.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(Failed::Write(error)),
        Err(_) => return Err(Failed::Write(io::ErrorKind::Interrupted.into())),
    }
    let mut check = Command::new(&config.program);
    check.arg("-c").arg("-f").arg(&beside);
    let deadline = Duration::from_secs(config.deadline_s);
    if let Err(why) = run(&mut check, deadline).await {
        // Kept for whoever wants to see what was refused; the next one overwrites it.
        return Err(Failed::Refused(why));
    }
    let out = config.out.clone();
    let renamed = tokio::task::spawn_blocking(move || {
        std::fs::rename(&beside, &out)?;
        sync_folder(&out)
    });
    match renamed.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Failed::Write(error)),
        Err(_) => Err(Failed::Write(io::ErrorKind::Interrupted.into())),
    }
}

/// Makes HAProxy read it, then takes away the maps of configurations before.
pub(crate) async fn reload(config: &Config, rendered: &Rendered) -> Result<(), Failed> {
    let mut command = Command::new("sh");
    command.arg("-c").arg(&config.reload);
    let deadline = Duration::from_secs(config.deadline_s);
    run(&mut command, deadline).await.map_err(Failed::Reload)?;
    let (out, map) = (config.out.clone(), rendered.map_path.clone());
    // Left-over maps harm nobody.
    let _ = tokio::task::spawn_blocking(move || clean(&out, &map)).await;
    Ok(())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    std::fs::File::open(folder(path))?.sync_all()
}

/// Removes `{out}.{16 hexadecimal digits}.map` other than `keep`.
fn clean(out: &Path, keep: &Path) {
    let Some(name) = out.file_name().and_then(OsStr::to_str) else {
        return;
    };
    for entry in std::fs::read_dir(folder(out)).into_iter().flatten().flatten() {
        let own = entry.file_name().to_str().is_some_and(|found| {
            let hash = found
                .strip_prefix(name)
                .and_then(|rest| rest.strip_prefix('.'))
                .and_then(|rest| rest.strip_suffix(".map"));
            hash.is_some_and(|h| h.len() == 16 && h.bytes().all(|b| b.is_ascii_hexdigit()))
        });
        if own && Some(entry.file_name().as_os_str()) != keep.file_name() {
            // Tried again with the next reload.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Runs a command to its end; else what it said, or that it took too long (it is killed then).
async fn run(command: &mut Command, deadline: Duration) -> Result<(), String> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(deadline, command.output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let said = [output.stderr, output.stdout].concat();
            let said: String = String::from_utf8_lossy(&said).trim().chars().take(TOLD).collect();
            Err(format!("{}: {said}", output.status))
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("not done within {} s", deadline.as_secs())),
    }
}
