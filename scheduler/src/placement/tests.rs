//! Tables of hosts and the one that must be chosen, or the filter that must refuse.

use model::{FailureCode, Generation, InstanceId, Schedulability, Strategy};
use proptest::prelude::*;

use super::*;

/// `name memory reserved [key=value | cordoned | draining | down | used=N | cpu=N | weight=N | ports=N]…`
fn host(text: &str) -> Host {
    let mut words = text.split_whitespace();
    let name = words.next().expect("a name").parse().expect("valid");
    let memory_mb = words.next().expect("memory").parse().expect("a number");
    let reserved_memory_mb = words.next().expect("reserved").parse().expect("a number");
    let mut host = Host {
        name,
        address: "127.0.0.1".parse().expect("valid"),
        engine: "fake://x".into(),
        labels: BTreeMap::new(),
        region: String::new(),
        memory_mb,
        cpu_millis: 4000,
        port_range: (20_000, 29_999),
        schedulability: Schedulability::Schedulable,
        down_since: None,
        reserved_memory_mb,
        reserved_cpu_weight: 0,
        instances: 0,
        used_cpu_millis: 0,
        created_at: Timestamp::default(),
        generation: Generation::FIRST,
    };
    for word in words {
        match word.split_once('=') {
            Some(("used", n)) => host.used_cpu_millis = n.parse().expect("a number"),
            Some(("weight", n)) => host.reserved_cpu_weight = n.parse().expect("a number"),
            Some(("cpu", n)) => host.cpu_millis = n.parse().expect("a number"),
            Some(("ports", n)) => host.port_range = (20_000, 19_999 + n.parse::<u16>().expect("a number")),
            Some((key, value)) => {
                host.labels.insert(key.into(), value.into());
            }
            None if word == "cordoned" => host.schedulability = Schedulability::Cordoned,
            None if word == "draining" => host.schedulability = Schedulability::Draining,
            None if word == "down" => host.down_since = Some(Timestamp::from_millis(1)),
            None => panic!("unknown word {word}"),
        }
    }
    host
}

/// `app host state`
fn instance(text: &str) -> Instance {
    let words: Vec<&str> = text.split_whitespace().collect();
    let state = InstanceState::ALL
        .into_iter()
        .find(|s| s.as_str() == words[2])
        .expect("a state");
    Instance {
        id: InstanceId::random(),
        app: words[0].parse().expect("valid"),
        release: 1,
        version: "1".parse().expect("valid"),
        host: words[1].parse().expect("valid"),
        port: 20_000,
        container: None,
        state,
        routed_at: None,
        assumed_healthy: false,
        failure: (state == InstanceState::Failed).then(|| model::Failure::new(FailureCode::Exited, "exited")),
        restarts: 0,
        memory_mb: 100,
        cpu_weight: 1024,
        placed_at: Timestamp::now(),
        started_at: None,
        heartbeat_at: None,
        changed_at: Timestamp::now(),
        released_at: None,
        generation: Generation::FIRST,
    }
}

/// `key=value`, `!key=value`, `max=N`, `one_per_host`, `with=app`, `apart=app`, `idle_cpu`, `memory=N`
fn spec(text: &str) -> ReleaseSpec {
    let mut spec = ReleaseSpec {
        memory_mb: 100,
        ..ReleaseSpec::default()
    };
    let placement = &mut spec.placement;
    for word in text.split_whitespace() {
        match word.split_once('=') {
            Some(("max", n)) => placement.max_per_host = n.parse().expect("a number"),
            Some(("memory", n)) => spec.memory_mb = n.parse().expect("a number"),
            Some(("with", app)) => placement.together_with = Some(app.parse().expect("valid")),
            Some(("apart", app)) => placement.apart_from = Some(app.parse().expect("valid")),
            Some((key, value)) => {
                let (labels, key) = match key.strip_prefix('!') {
                    Some(key) => (&mut placement.not_labels, key),
                    None => (&mut placement.labels, key),
                };
                labels.insert(key.into(), value.into());
            }
            None if word == "one_per_host" => placement.one_per_host = true,
            None if word == "idle_cpu" => placement.strategy = Strategy::MostIdleCpu,
            None => panic!("unknown word {word}"),
        }
    }
    spec
}

/// Picks for `count` instances of `shop`, of which `desired` are wanted.
fn picks(spec_text: &str, hosts: &[&str], held: &[&str], desired: u32, count: usize) -> (Vec<String>, Vec<String>) {
    let hosts: Vec<Host> = hosts.iter().map(|t| host(t)).collect();
    let held: Vec<Instance> = held.iter().map(|t| instance(t)).collect();
    let app: AppId = "shop".parse().expect("valid");
    let spec = spec(spec_text);
    let own: Vec<Instance> = held.iter().filter(|i| i.app == app).cloned().collect();
    let request = Request {
        app: &app,
        spec: &spec,
        desired,
        only: None,
        leaving: &HashMap::new(),
        failed_on: &failed_on(&own, Timestamp::now()),
    };
    let (picks, why) = choose(&request, count, &hosts, &mut Census::of(&held));
    (
        picks.iter().map(ToString::to_string).collect(),
        why.map(|w| w.reasons()).unwrap_or_default(),
    )
}

#[test]
fn the_best_host_is_chosen() {
    // spec, hosts, held instances, wanted number, the one right host
    type Case = (
        &'static str,
        &'static [&'static str],
        &'static [&'static str],
        u32,
        &'static str,
    );
    let cases: &[Case] = &[
        ("", &["a 1000 0"], &[], 1, "a"),
        ("", &["a 1000 500", "b 1000 400"], &[], 1, "b"),
        ("", &["a 1000 400", "b 1000 500"], &[], 1, "a"),
        ("", &["a 1000 0", "b 1000 1", "c 1000 2"], &[], 1, "a"),
        ("", &["a 1000 2", "b 1000 1", "c 1000 0"], &[], 1, "c"),
        // The most free memory, not the emptiest host.
        ("", &["a 8000 4000", "b 1000 0"], &[], 1, "a"),
        ("", &["a 8000 7500", "b 1000 0"], &[], 1, "b"),
        ("memory=900", &["a 8000 7500", "b 1000 0"], &[], 1, "b"),
        ("memory=500", &["a 1000 501", "b 600 100"], &[], 1, "b"),
        ("memory=100", &["a 100 0"], &[], 1, "a"),
        // Hosts that take nothing are passed over although they are better.
        ("", &["a 9000 0 cordoned", "b 1000 800"], &[], 1, "b"),
        ("", &["a 9000 0 draining", "b 1000 800"], &[], 1, "b"),
        ("", &["a 9000 0 down", "b 1000 800"], &[], 1, "b"),
        // Labels.
        ("zone=x", &["a 9000 0 zone=y", "b 1000 0 zone=x"], &[], 1, "b"),
        ("zone=x", &["a 9000 0", "b 1000 0 zone=x"], &[], 1, "b"),
        (
            "zone=x disk=ssd",
            &["a 9000 0 zone=x", "b 1000 0 zone=x disk=ssd"],
            &[],
            1,
            "b",
        ),
        ("!zone=x", &["a 9000 0 zone=x", "b 1000 0 zone=y"], &[], 1, "b"),
        ("!zone=x", &["a 9000 0 zone=x", "b 1000 0"], &[], 1, "b"),
        (
            "zone=x !disk=hdd",
            &["a 9000 0 zone=x disk=hdd", "b 1000 0 zone=x disk=ssd"],
            &[],
            1,
            "b",
        ),
        // Ports.
        ("", &["a 9000 0 ports=1", "b 1000 0"], &["blog a running"], 1, "b"),
        ("", &["a 9000 0 ports=2", "b 1000 0"], &["blog a running"], 1, "a"),
        // Spread: n others of the app cost (n + 1) / wanted.
        ("", &["a 1000 0", "b 1000 100"], &["shop a running"], 2, "b"),
        ("", &["a 1000 0", "b 1000 500"], &["shop a running"], 2, "b"),
        ("", &["a 1000 0", "b 1000 800"], &["shop a running"], 2, "b"),
        (
            "",
            &["a 1000 0", "b 1000 100"],
            &["shop a running", "shop b running"],
            3,
            "a",
        ),
        (
            "",
            &["a 1000 0", "b 1000 100"],
            &["shop a running", "shop a running", "shop b running"],
            4,
            "b",
        ),
        // Among very many a neighbour weighs little.
        ("", &["a 1000 0", "b 1000 800"], &["shop a running"], 100, "a"),
        ("", &["a 1000 0", "b 1000 100"], &["blog a running"], 2, "a"),
        ("", &["a 1000 0", "b 1000 100"], &["shop a draining"], 2, "a"),
        ("", &["a 1000 0", "b 1000 100"], &["shop a lost"], 2, "a"),
        // Launches under way.
        ("", &["a 1000 0", "b 1000 200"], &["blog a placed"], 1, "b"),
        ("", &["a 1000 0", "b 1000 200"], &["blog a starting"], 1, "b"),
        ("", &["a 1000 0", "b 1000 200"], &["blog a running"], 1, "a"),
        ("", &["a 1000 0", "b 1000 300"], &["blog a starting"], 1, "a"),
        (
            "",
            &["a 1000 0", "b 1000 450"],
            &["blog a starting", "blog a placed"],
            1,
            "b",
        ),
        (
            "",
            &["a 1000 0", "b 1000 550"],
            &["blog a starting", "blog a placed"],
            1,
            "a",
        ),
        // A recent failure weighs a whole point.
        ("", &["a 1000 0", "b 1000 850"], &["shop a failed"], 1, "b"),
        ("", &["a 1000 0", "b 1000 850"], &["blog a failed"], 1, "a"),
        ("", &["a 1000 0", "b 1000 950"], &["shop a failed"], 1, "a"),
        // Neighbours.
        ("max=1", &["a 9000 0", "b 1000 0"], &["shop a running"], 99, "b"),
        ("max=2", &["a 9000 0", "b 1000 0"], &["shop a running"], 99, "a"),
        (
            "max=2",
            &["a 9000 0", "b 1000 0"],
            &["shop a running", "shop a starting"],
            99,
            "b",
        ),
        ("max=1", &["a 9000 0", "b 1000 0"], &["blog a running"], 99, "a"),
        ("one_per_host", &["a 9000 0", "b 1000 0"], &["shop a running"], 99, "b"),
        ("with=db", &["a 9000 0", "b 1000 0"], &["db b running"], 1, "b"),
        (
            "with=db",
            &["a 9000 0", "b 1000 0"],
            &["db b running", "db a draining"],
            1,
            "b",
        ),
        ("apart=db", &["a 9000 0", "b 1000 0"], &["db a running"], 1, "b"),
        ("apart=db", &["a 9000 0", "b 1000 0"], &["db a draining"], 1, "b"),
        ("apart=db", &["a 9000 0", "b 1000 0"], &["db a failed"], 1, "a"),
        (
            "with=db apart=web",
            &["a 9000 0", "b 1000 0"],
            &["db a running", "db b running", "web a running"],
            1,
            "b",
        ),
        // CPU.
        ("idle_cpu", &["a 1000 0 used=3000", "b 1000 900 used=100"], &[], 1, "b"),
        ("idle_cpu", &["a 1000 0 used=2000", "b 1000 0 used=1999"], &[], 1, "b"),
        (
            "idle_cpu",
            &["a 1000 0 cpu=8000 used=2000", "b 1000 0 cpu=2000 used=1000"],
            &[],
            1,
            "a",
        ),
        ("idle_cpu", &["a 9000 0 used=9000", "b 1000 0 used=3900"], &[], 1, "b"),
        (
            "idle_cpu memory=500",
            &["a 1000 600 used=0", "b 1000 0 used=3900"],
            &[],
            1,
            "b",
        ),
        (
            "idle_cpu",
            &["a 1000 0 used=0", "b 1000 0 used=2000"],
            &["shop a running"],
            2,
            "b",
        ),
    ];
    assert!(cases.len() >= 50, "{}", cases.len());
    for (spec, hosts, held, desired, right) in cases {
        let (chosen, why) = picks(spec, hosts, held, *desired, 1);
        assert_eq!(chosen, [*right], "{spec:?} on {hosts:?} beside {held:?}: {why:?}");
    }
}

#[test]
fn refusals_are_counted_and_explained() {
    type Case = (
        &'static str,
        &'static [&'static str],
        &'static [&'static str],
        &'static [&'static str],
    );
    let cases: &[Case] = &[
        ("", &[], &[], &["hosts: there is no host; add one"]),
        (
            "memory=512",
            &["a 500 0", "b 1000 600"],
            &[],
            &["memory: 2 hosts have less than 512 MiB free"],
        ),
        (
            "memory=512",
            &["a 500 0"],
            &[],
            &["memory: 1 host has less than 512 MiB free"],
        ),
        (
            "",
            &["a 1000 0 cpu=1000 weight=31745", "b 1000 0 cpu=1000 weight=32768"],
            &[],
            &["cpu: 2 hosts have less than 1024 of CPU weight left"],
        ),
        (
            "",
            &["a 1000 0 down", "b 1000 0 cordoned", "c 1000 0 draining"],
            &[],
            &["state: 3 hosts can't take instances (1 down, 1 cordoned, 1 draining)"],
        ),
        (
            "zone=x",
            &["a 1000 0", "b 1000 0 zone=y"],
            &[],
            &["labels: 2 hosts lack zone=x"],
        ),
        (
            "!zone=x",
            &["a 1000 0 zone=x"],
            &[],
            &["not_labels: 1 host has one of zone=x"],
        ),
        (
            "",
            &["a 1000 0 ports=1"],
            &["blog a running"],
            &["port: 1 host has no free port in the range"],
        ),
        (
            "one_per_host",
            &["a 1000 0"],
            &["shop a running"],
            &["one_per_host: 1 host already runs an instance"],
        ),
        (
            "max=1",
            &["a 1000 0"],
            &["shop a running"],
            &["max_per_host: 1 host already runs 1 of this app"],
        ),
        (
            "with=db",
            &["a 1000 0", "b 1000 0"],
            &[],
            &["together_with: 2 hosts run no instance of db"],
        ),
        (
            "apart=db",
            &["a 1000 0"],
            &["db a running"],
            &["apart_from: 1 host runs an instance of db"],
        ),
        (
            "zone=x memory=512",
            &["a 1000 0 zone=y", "b 100 0 zone=x", "c 9000 0 zone=x cordoned"],
            &[],
            &[
                "state: 1 host can't take instances (1 cordoned)",
                "labels: 1 host lacks zone=x",
                "memory: 1 host has less than 512 MiB free",
            ],
        ),
    ];
    for (spec, hosts, held, reasons) in cases {
        let (chosen, why) = picks(spec, hosts, held, 1, 1);
        assert!(chosen.is_empty(), "{spec:?} on {hosts:?}: {chosen:?}");
        assert_eq!(why, *reasons, "{spec:?} on {hosts:?}");
    }
}

#[test]
fn a_batch_sees_its_own_picks() {
    let hosts = ["a 1000 0", "b 1000 0", "c 1000 0", "d 1000 0"];
    let (mut chosen, why) = picks("", &hosts, &[], 4, 4);
    chosen.sort();
    assert_eq!(chosen, ["a", "b", "c", "d"]);
    assert!(why.is_empty());
    let (chosen, why) = picks("memory=400", &["a 1000 0", "b 500 0"], &[], 9, 9);
    assert_eq!(chosen.len(), 3, "two on a, one on b");
    assert_eq!(why, ["memory: 2 hosts have less than 400 MiB free"]);
    let (chosen, _) = picks("one_per_host", &hosts, &[], 9, 9);
    assert_eq!(chosen.len(), 4);
    let (chosen, _) = picks("", &["a 1000 0 ports=3"], &["blog a running"], 9, 9);
    assert_eq!(chosen.len(), 2);
}

#[test]
fn ties_are_broken_by_chance() {
    let chosen: HashSet<String> = (0..200)
        .flat_map(|_| picks("", &["a 1000 0", "b 1000 0", "c 1000 0"], &[], 1, 1).0)
        .collect();
    assert_eq!(chosen.len(), 3, "{chosen:?}");
}

#[test]
fn instances_that_leave_do_not_count() {
    let app: AppId = "shop".parse().expect("valid");
    let spec = spec("max=1");
    let leaving = HashMap::from([("a".parse::<HostName>().expect("valid"), 1)]);
    let request = Request {
        app: &app,
        spec: &spec,
        desired: 1,
        only: None,
        leaving: &leaving,
        failed_on: &HashSet::new(),
    };
    let held = [instance("shop a running")];
    let (chosen, _) = choose(&request, 2, &[host("a 1000 0")], &mut Census::of(&held));
    assert_eq!(chosen.len(), 1, "the old one makes way, the new one counts");
}

#[test]
fn an_explanation_ranks_what_fits() {
    let hosts = [host("a 1000 500"), host("b 1000 0"), host("c 1000 0 cordoned")];
    let explanation = explain(
        &spec(""),
        &"shop".parse().expect("valid"),
        &hosts,
        &[],
        &Census::default(),
    );
    assert_eq!(explanation.hosts, 3);
    let fitting: Vec<&str> = explanation.fitting.iter().map(|f| f.host.as_str()).collect();
    assert_eq!(fitting, ["b", "a"]);
    assert_eq!(explanation.refused.len(), 1);
    assert_eq!(explanation.refused[0].filter, Filter::State);
    let mut census = Census::default();
    census.disk_full(&"b".parse().expect("valid"));
    let explanation = explain(&spec(""), &"shop".parse().expect("valid"), &hosts, &[], &census);
    assert_eq!(explanation.fitting.len(), 1);
    assert_eq!(
        explanation.reasons()[1],
        "disk: 1 host has a full disk, by what the engine said within the last 60 s"
    );
}

proptest! {
    /// Whatever the fleet: no pick exceeds a host's memory, ports or limits.
    #[test]
    fn picks_never_overbook(
        sizes in prop::collection::vec((100_u32..2000, 0_u32..1500, 1_u32..5), 1..8),
        memory in 50_u32..600,
        max in 0_u32..3,
        count in 0_usize..40,
    ) {
        let texts: Vec<String> = sizes
            .iter()
            .enumerate()
            .map(|(i, (memory, reserved, ports))| format!("h{i} {memory} {reserved} ports={ports}"))
            .collect();
        let refs: Vec<&str> = texts.iter().map(String::as_str).collect();
        let (chosen, why) = picks(&format!("memory={memory} max={max}"), &refs, &[], 10, count);
        prop_assert_eq!(chosen.len() < count, !why.is_empty());
        for (i, (size, reserved, ports)) in sizes.iter().enumerate() {
            let name = format!("h{i}");
            let n = u32::try_from(chosen.iter().filter(|c| **c == name).count()).expect("few");
            prop_assert!(n * memory <= size.saturating_sub(*reserved));
            prop_assert!(n <= *ports);
            prop_assert!(max == 0 || n <= max);
        }
    }
}
