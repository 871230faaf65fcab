//! Where instances go: labels, together, apart, spread, one per host (also on one that joins later), the idlest CPU.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Result;
use e2e::wait::{expect, until};
use e2e::{Platform, platform};
use serde_json::{Value, json};

crate::support::in_both_modes! {
    instances_go_where_they_are_asked_to,
}

crate::support::all_in_one! {
    the_idlest_cpu_is_chosen,
}

crate::support::with_separate_roles! {
    one_instance_on_every_host_also_on_a_new_one,
}

/// Instances of an app per host, by the engines themselves.
async fn hosts(p: &Platform, app: &str) -> Result<BTreeMap<String, usize>> {
    let mut hosts = BTreeMap::new();
    for (host, _) in p.containers(app).await? {
        *hosts.entry(host).or_default() += 1;
    }
    Ok(hosts)
}

async fn placed(p: &Platform, app: &str, instances: u32, placement: Value, wanted: &[(&str, usize)]) -> Result<()> {
    let spec = json!({"memory_mb": 32, "placement": placement});
    p.deploy_hello(app, "1", instances, spec).await?;
    let seen = hosts(p, app).await?;
    let wanted: BTreeMap<String, usize> = wanted.iter().map(|(host, n)| ((*host).to_owned(), *n)).collect();
    expect(seen == wanted, || {
        format!("{app} ({placement}) is on {seen:?}, not on {wanted:?}")
    })
}

async fn instances_go_where_they_are_asked_to(p: &Platform) -> Result<()> {
    placed(p, "labelled", 2, json!({"labels": {"number": "2"}}), &[("h2", 2)]).await?;
    let friend = json!({"together_with": "labelled"});
    placed(p, "friend", 3, friend, &[("h2", 3)]).await?;
    let foe = json!({"apart_from": "labelled"});
    placed(p, "foe", 2, foe, &[("h1", 1), ("h3", 1)]).await?;
    let not = json!({"not_labels": {"number": "1"}});
    placed(p, "not", 2, not, &[("h2", 1), ("h3", 1)]).await?;
    placed(p, "spread", 6, json!({}), &[("h1", 2), ("h2", 2), ("h3", 2)]).await?;
    placed(
        p,
        "few",
        3,
        json!({"max_per_host": 1}),
        &[("h1", 1), ("h2", 1), ("h3", 1)],
    )
    .await?;
    // A fourth has no place: the answer counts why, filter by filter.
    let four = json!({"instances": 4});
    let reply = p.api.call("POST", "/apps/few/scale", Some(&four)).await?;
    let told = reply.code() == "NO_CAPACITY" && reply.body["reasons"].to_string().contains("max_per_host: 3 hosts");
    expect(reply.status == 409 && told, || format!("{reply:?}"))?;

    // What binds a placement also binds the replacement.
    let (host, container) = p.containers("friend").await?.remove(0);
    p.fleet.host(&host).kill_container(&container.id).await?;
    crate::support::failed_with(p, "friend", "exited").await?;
    p.answers("friend", "1", 3).await?;
    p.settled().await?;
    let seen = hosts(p, "friend").await?;
    expect(seen.len() == 1 && seen["h2"] == 3, || format!("{seen:?}"))
}

async fn one_instance_on_every_host_also_on_a_new_one(p: &Platform) -> Result<()> {
    // A host is emptied and leaves, by the command line.
    p.cli_ok(&["host", "drain", "h3"]).await?;
    p.cli_ok(&["host", "rm", "h3"]).await?;
    let table = p.cli_ok(&["host", "ls"]).await?;
    expect(table.contains("h2") && !table.contains("h3"), || table.clone())?;
    let one = json!({"one_per_host": true});
    let deployed = placed(p, "agent", 2, one, &[("h1", 1), ("h2", 1)]).await;

    // It joins: it gets its instance, unasked, and the others keep theirs.
    let before: BTreeSet<String> = p.containers("agent").await?.into_iter().map(|(_, c)| c.id).collect();
    let host = p.fleet.host("h3");
    let (first, last) = p.ports();
    let joined = p
        .cli(&[
            "host",
            "add",
            "h3",
            "--address",
            &host.address,
            "--engine",
            &host.engine,
            "--label",
            "number=3",
            "--region",
            "test",
            "--memory",
            &format!("{}M", platform::HOST_MEMORY_MB),
            "--ports",
            &format!("{first}-{last}"),
        ])
        .await?;
    p.hosts_up().await?;
    deployed?;
    expect(joined.0 == 0, || format!("{joined:?}"))?;
    let everywhere = async || match hosts(p, "agent").await {
        Ok(seen) if seen.len() == 3 && seen.values().all(|n| *n == 1) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    until("an instance on the new host", Duration::from_secs(30), everywhere).await?;
    p.answers("agent", "1", 3).await?;
    let after: BTreeSet<String> = p.containers("agent").await?.into_iter().map(|(_, c)| c.id).collect();
    expect(before.is_subset(&after), || format!("{before:?} {after:?}"))?;
    p.remove("agent").await
}

async fn the_idlest_cpu_is_chosen(p: &Platform) -> Result<()> {
    let busy = json!({"memory_mb": 32, "env": {"MODE": "burn"}, "placement": {"labels": {"number": "1"}}});
    p.deploy_hello("busy", "1", 1, busy).await?;
    until("h1's use of CPU is known", Duration::from_secs(30), async || {
        let host = p.api.get("/hosts/h1").await.map_err(|e| format!("{e:#}"))?;
        let used = host["used_cpu_millis"]
            .as_u64()
            .or_else(|| host["host"]["used_cpu_millis"].as_u64());
        if used.is_some_and(|millis| millis >= 300) {
            Ok(())
        } else {
            Err(host.to_string())
        }
    })
    .await?;
    // By memory they would go to h1 as well: it has the most left.
    for host in ["h2", "h3"] {
        let ballast = json!({"memory_mb": 256, "placement": {"labels": {"number": &host[1..]}}});
        p.deploy_hello(&format!("ballast-{host}"), "1", 1, ballast).await?;
    }
    let spec = |strategy: &str| json!({"memory_mb": 32, "placement": {"strategy": strategy}});
    p.deploy_hello("by-memory", "1", 1, spec("most_free_memory")).await?;
    let seen = hosts(p, "by-memory").await?;
    expect(seen.contains_key("h1"), || format!("by memory on {seen:?}"))?;
    for app in ["idle-1", "idle-2", "idle-3"] {
        p.deploy_hello(app, "1", 1, spec("most_idle_cpu")).await?;
        let seen = hosts(p, app).await?;
        expect(!seen.contains_key("h1"), || {
            format!("{app} is on the busy host: {seen:?}")
        })?;
    }
    Ok(())
}
