use super::*;

/// An environment of nothing: tests must not see the real one.
fn nothing() -> Env {
    Env::raw().filter(|_| false)
}

fn read(text: &str) -> Result<Config, Failure> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("caas.toml");
    std::fs::write(&path, text).expect("written");
    load(Some(&path), nothing(), &Overrides::default(), &[])
}

#[test]
fn nothing_said_means_the_defaults() {
    let config = load(None, nothing(), &Overrides::default(), &[]).expect("sound");
    assert_eq!(config, Config::default());
    assert_eq!(config.api_listen.0.to_string(), "127.0.0.1:8090");
    assert!(config.gateway().is_ok());
}

#[test]
fn flags_go_before_environment_before_file_before_defaults() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("caas.toml");
    let text = "[gateway]\ndomain = \"file\"\nid = \"file\"\nworkers = 3\n[store]\nurl = \"sqlite:///file\"\n";
    std::fs::write(&path, text).expect("written");
    // CARGO_PKG_NAME is "caas" in every test's environment: renamed, it stands for CAAS_GATEWAY__DOMAIN.
    let environment = Env::raw().filter_map(|name| match name.as_str() {
        "CARGO_PKG_NAME" => Some("gateway.domain".into()),
        "CARGO_PKG_VERSION" => Some("gateway.id".into()),
        _ => None,
    });
    let mut defaults = Overrides::default();
    defaults
        .set("store.url", Some("sqlite:///default"))
        .set("registry.url", Some("memory:"));
    let mut flags = Overrides::default();
    flags
        .set("gateway.domain", Some("flag"))
        .set("gateway.id", None::<String>);
    let config = load(Some(&path), environment, &defaults, &[&flags]).expect("sound");
    assert_eq!(config.gateway.domain, "flag");
    assert_eq!(config.gateway.id, env!("CARGO_PKG_VERSION"));
    assert_eq!(config.gateway.workers, 3);
    assert_eq!(config.store.url, "sqlite:///file");
    assert_eq!(config.registry.url, "memory:");
}

#[test]
fn the_apis_address_stands_in_the_schedulers_section() {
    let config = read("[scheduler]\nlisten = \"0.0.0.0:1\"\ndefault_registry = \"r:5000\"\n").expect("sound");
    assert_eq!(config.api_listen.0.to_string(), "0.0.0.0:1");
    assert_eq!(config.scheduler.default_registry, "r:5000");
}

#[test]
fn bad_configuration_is_one_clear_sentence() {
    for (text, words) in [
        ("[gatewya]\n", vec!["gatewya", "did you mean `gateway`?", "caas.toml"]),
        (
            "[gateway]\nlisen = 1\n",
            vec!["gateway.lisen", "did you mean `listen`?"],
        ),
        ("[gateway]\nworkers = \"many\"\n", vec!["gateway.workers", "many"]),
        ("[gateway]\nlisten = \"nowhere\"\n", vec!["gateway.listen"]),
        ("[scheduler]\nlisten = 5\n", vec!["scheduler.listen"]),
        (
            "[scheduler.converge]\nfull_pas_s = 5\n",
            vec!["full_pas_s", "full_pass_s"],
        ),
        ("[registry_sync]\nx = 5\n", vec!["registry_sync.x", "no such key"]),
        ("[log]\nformat = \"xml\"\n", vec!["log.format"]),
        ("[log\n", vec![]),
    ] {
        let failure = read(text).expect_err(text);
        assert_eq!(failure.code, crate::exit::USAGE, "{text}");
        assert!(failure.lines.is_empty(), "{failure}");
        for word in words {
            assert!(failure.message.contains(word), "{text:?}: {}", failure.message);
        }
    }
    let failure = load(Some(Path::new("/no/such")), nothing(), &Overrides::default(), &[]).expect_err("no file");
    assert!(failure.message.contains("/no/such does not exist"), "{failure}");
}

#[test]
fn each_role_refuses_what_it_cannot_work_with() {
    let mut config = Config::default();
    assert!(
        config
            .store_url()
            .expect_err("none")
            .message
            .contains("CAAS_STORE__URL")
    );
    config.store.url = "postgres://me:secret@h/db".into();
    let message = config.store_url().expect_err("unknown").message;
    assert!(message.contains("mysql://") && !message.contains("secret"), "{message}");
    assert!(!format!("{config:?}").contains("secret"));
    config.registry.url = "memory:".into();
    let message = config.registry_url(&["zk://"]).expect_err("one process").message;
    assert!(message.contains("caas up"), "{message}");
    assert!(config.registry_url(&["zk://", "memory:"]).is_ok());
    config.gateway.domain = "No".into();
    assert!(config.gateway().is_err());
    let dir = tempfile::tempdir().expect("a folder");
    config.engine.tls_dir = Some(dir.path().to_owned());
    assert!(config.tls_dir().expect_err("empty").message.contains("ca.pem"));
}

#[test]
fn passwords_are_hidden() {
    assert_eq!(
        without_password("mysql://me:p@ss@h:3306/db"),
        "mysql://me:***@h:3306/db"
    );
    assert_eq!(without_password("sqlite:///x"), "sqlite:///x");
}

/// Every key with its default, as `section.key` and the default's JSON.
fn defaults() -> Vec<(String, String)> {
    fn flatten(at: &str, value: &serde_json::Value, out: &mut Vec<(String, String)>) {
        match value.as_object() {
            Some(map) => map.iter().for_each(|(key, inner)| {
                let path = if at.is_empty() {
                    key.clone()
                } else {
                    format!("{at}.{key}")
                };
                flatten(&path, inner, out);
            }),
            None => out.push((at.to_owned(), value.to_string())),
        }
    }
    let mut out = vec![("scheduler.listen".into(), format!("\"{}\"", ApiListen::default().0))];
    flatten("", &serde_json::to_value(Config::default()).expect("json"), &mut out);
    out
}

/// The key and default columns of the reference's tables, by section.
fn documented() -> Vec<(String, String)> {
    let text = include_str!("../../../docs/configuration.md");
    let mut section = String::new();
    let mut out = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("## `[").and_then(|l| l.strip_suffix("]`")) {
            section = name.to_owned();
        } else if let Some(row) = line.strip_prefix("| `") {
            let mut cells = row.split('|').map(|c| c.trim().trim_matches('`'));
            let (Some(key), Some(default)) = (cells.next(), cells.next()) else {
                panic!("not a row: {line}");
            };
            let default = if default == "none" { "null" } else { default };
            out.push((format!("{section}.{key}"), default.replace(", ", ",")));
        }
    }
    out
}

#[test]
fn the_reference_holds_every_key_with_its_default() {
    let documented = documented();
    let defaults = defaults();
    for (key, default) in &defaults {
        let found = documented.iter().find(|(k, _)| k == key);
        let Some((_, written)) = found else {
            panic!("docs/configuration.md does not tell `{key}` (default `{default}`)");
        };
        assert_eq!(
            written, default,
            "docs/configuration.md tells another default for `{key}`"
        );
    }
    for (key, _) in &documented {
        assert!(
            defaults.iter().any(|(k, _)| k == key),
            "docs/configuration.md tells `{key}`, which is gone"
        );
    }
}

#[test]
fn the_example_file_can_be_read_with_every_line_switched_on() {
    let text = include_str!("../../../caas.example.toml");
    let plain = read(text).expect("as it is");
    assert_eq!(plain.gateway, gateway::Config::default());
    let on: String = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            // Settings are `#key = value`; sentences are `# Words`.
            Some(setting) if !setting.starts_with(' ') => format!("{setting}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    read(&on).expect("every line switched on");

    let example: toml::Table = toml::from_str(&on).expect("TOML");
    let (mut section, mut keys) = (String::new(), 0);
    // The document's rows are compared with the code elsewhere.
    for line in include_str!("../../../docs/configuration.md").lines() {
        if let Some(rest) = line.strip_prefix("## `[") {
            section = rest.trim_end_matches("]`").to_owned();
        }
        let mut cells = line.split(" | ");
        let (Some(key), Some(default)) = (cells.next(), cells.next()) else {
            continue;
        };
        let Some(key) = key.strip_prefix("| `").and_then(|key| key.strip_suffix('`')) else {
            continue;
        };
        let mut found = example.get(section.split('.').next().unwrap_or_default());
        for part in section.split('.').skip(1).chain([key]) {
            found = found.and_then(|table| table.get(part));
        }
        let found = found.unwrap_or_else(|| panic!("{key} of [{section}] is missing"));
        keys += 1;
        let default = default.trim_matches('`');
        if !["none", "\"\"", "[]"].contains(&default) {
            let wanted: toml::Table = toml::from_str(&format!("v = {default}")).expect("a value");
            assert_eq!(Some(found), wanted.get("v"), "{key} of [{section}]");
        }
    }
    assert!(keys > 100, "{keys} keys");
}
