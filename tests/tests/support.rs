//! What every scenario stands on: the shared fleet, one platform per mode, and the clean slate afterwards.

use std::io::Write as _;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use e2e::{Fleet, Mode, Platform, platform};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;

/// No scenario takes longer.
const LIMIT: Duration = Duration::from_secs(180);

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("a runtime can be made")
});
/// The fleet and its platforms belong to one scenario at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
/// So does what runs beside them.
static ONE_BESIDE: Mutex<()> = Mutex::new(());
// A part that did not start is not tried again: every scenario that needs it fails with the same words.
static FLEET: OnceCell<Result<Arc<Fleet>, String>> = OnceCell::const_new();
static ALL_IN_ONE: OnceCell<Result<Platform, String>> = OnceCell::const_new();
static SEPARATE: OnceCell<Result<Platform, String>> = OnceCell::const_new();

/// Whether scenarios can't run here. Panics instead where nothing may be skipped.
fn skip() -> bool {
    skip_because(Fleet::missing())
}

/// Whether there is a reason to skip a scenario; it is told. Panics instead where nothing may be skipped.
pub(crate) fn skip_because(why: Option<String>) -> bool {
    let Some(why) = why else { return false };
    assert!(
        std::env::var("CAAS_TEST_REQUIRE_ALL").is_err(),
        "the end-to-end tests can't run: {why}"
    );
    eprintln!("skipped: {why}");
    true
}

/// The shared fleet.
async fn fleet() -> Result<Arc<Fleet>, String> {
    let start = async || {
        Fleet::start()
            .await
            .map(Arc::new)
            .map_err(|e| format!("the fleet did not start: {e:#}"))
    };
    FLEET.get_or_init(start).await.clone()
}

async fn platform(mode: Mode) -> Result<&'static Platform, String> {
    let cell = match mode {
        Mode::AllInOne => &ALL_IN_ONE,
        Mode::Separate => &SEPARATE,
    };
    let start = async || {
        let platform = Platform::start(fleet().await?, mode).await;
        platform.map_err(|e| format!("the platform ({mode:?}) did not start: {e:#}"))
    };
    cell.get_or_init(start).await.as_ref().map_err(String::clone)
}

/// A line for the log of the run: how long a scenario took, also of one that succeeds, whose output the test program keeps to
/// itself.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Runs a scenario on the fleet alone.
pub(crate) fn on_fleet(name: &str, scenario: impl AsyncFnOnce(Arc<Fleet>) -> Result<()>) {
    if skip() {
        return;
    }
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    RUNTIME.block_on(async {
        let fleet = fleet().await.unwrap_or_else(|e| panic!("{e}"));
        alone(name, scenario(fleet)).await;
    });
}

/// Runs a scenario that touches nothing of the fleet, while others have that.
pub(crate) fn beside_the_fleet(name: &str, scenario: impl AsyncFnOnce() -> Result<()>) {
    if skip() {
        return;
    }
    let _one = ONE_BESIDE.lock().unwrap_or_else(PoisonError::into_inner);
    RUNTIME.block_on(alone(name, scenario()));
}

/// Runs a scenario that has no platform.
async fn alone(name: &str, scenario: impl Future<Output = Result<()>>) {
    let began = Instant::now();
    let outcome = tokio::time::timeout(LIMIT, scenario).await;
    tell(&format!("{name}: {:.1?}", began.elapsed()));
    outcome
        .unwrap_or_else(|_| Err(anyhow::anyhow!("not done within {LIMIT:?}")))
        .unwrap_or_else(|e| panic!("{e:#}"));
}

/// Runs a scenario on a platform; afterwards everything must be as wanted, and when its apps are removed nothing may be left.
pub(crate) fn on_platform(mode: Mode, name: &str, scenario: impl AsyncFnOnce(&'static Platform) -> Result<()>) {
    if skip() {
        return;
    }
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    RUNTIME.block_on(async {
        let platform = platform(mode).await.unwrap_or_else(|e| panic!("{e}"));
        let began = Instant::now();
        let work = async {
            scenario(platform).await?;
            let told = began.elapsed();
            platform.settled().await.context("after the scenario")?;
            clean(platform).await?;
            platform.settled().await.context("after the removal of its apps")?;
            anyhow::Ok(told)
        };
        let outcome = tokio::time::timeout(LIMIT, work).await;
        let outcome = outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("not done within {LIMIT:?}")));
        match outcome {
            Ok(told) => tell(&format!(
                "{mode:?} {name}: {told:.1?}, {:.1?} with what follows",
                began.elapsed()
            )),
            Err(error) => {
                let logs = platform.logs();
                // The next scenario starts on a sound platform, whatever became of this one.
                let repaired = match platform.heal().await {
                    Ok(()) => clean(platform).await,
                    failed => failed,
                };
                panic!("{mode:?} {name} (repaired: {repaired:?}): {error:#}\n\n{logs}");
            }
        }
    });
}

/// Takes all apps away.
async fn clean(platform: &Platform) -> Result<()> {
    let apps = platform.api.get("/apps").await?;
    let ids: Vec<String> = platform::list(&apps)
        .iter()
        .filter_map(|app| Some(app["id"].as_str()?.to_owned()))
        .collect();
    futures::future::try_join_all(ids.iter().map(|id| platform.remove(id))).await?;
    Ok(())
}

/// Waits until an instance of `app` shows a failure of that code; its row.
pub(crate) async fn failed_with(p: &Platform, app: &str, code: &str) -> Result<Value> {
    let (instance, _) = e2e::wait::until(
        &format!("an instance of {app} failed with {code}"),
        Duration::from_secs(30),
        async || {
            let all = p
                .api
                .get(&format!("/instances?app={app}&all=true"))
                .await
                .map_err(|e| format!("{e:#}"))?;
            let list = e2e::platform::list(&all);
            list.iter()
                .find(|i| i["failure"]["code"] == code)
                .cloned()
                .ok_or_else(|| all.to_string())
        },
    )
    .await?;
    Ok(instance)
}

/// Makes one test per mode of each scenario.
macro_rules! in_both_modes {
    ($($name:ident),+ $(,)?) => {
        mod all_in_one {
            $(#[test] fn $name() { crate::support::on_platform(e2e::Mode::AllInOne, stringify!($name), super::$name); })+
        }
        mod separate {
            $(#[test] fn $name() { crate::support::on_platform(e2e::Mode::Separate, stringify!($name), super::$name); })+
        }
    };
}

/// Makes a test of each scenario with all in one.
macro_rules! all_in_one {
    ($($name:ident),+ $(,)?) => {
        mod all_in_one_only {
            $(#[test] fn $name() { crate::support::on_platform(e2e::Mode::AllInOne, stringify!($name), super::$name); })+
        }
    };
}

/// Makes a test of each scenario with separate roles.
macro_rules! with_separate_roles {
    ($($name:ident),+ $(,)?) => {
        mod separate_only {
            $(#[test] fn $name() { crate::support::on_platform(e2e::Mode::Separate, stringify!($name), super::$name); })+
        }
    };
}

pub(crate) use {all_in_one, in_both_modes, with_separate_roles};
