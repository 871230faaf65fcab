//! Merging: the fields that a request gives over the ones that were, with every bad field named by its JSON pointer.
//! It never accepts a field that the model does not know.

use model::config::{Protocol, Tcp};
use model::{AppConfig, ReleaseSpec, SpecError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::extract::pointer;

/// `given` over `previous`: a field that is given replaces the old one, `null` brings back its default; of
/// `health`, `placement` and `update` only the given fields are replaced. Maps (`env`, labels) are replaced whole.
pub(super) fn release_spec(
    previous: &ReleaseSpec,
    given: Option<&Map<String, Value>>,
) -> Result<ReleaseSpec, SpecError> {
    merge(previous, given, &["health", "placement", "update"], "/spec")
}

/// The same for an app's configuration (`limits`, `timeouts` and `tcp` by field); `root` is where it stands in the request.
pub(super) fn app_config(
    previous: &AppConfig,
    given: Option<&Map<String, Value>>,
    root: &str,
) -> Result<AppConfig, SpecError> {
    let own = [
        (
            "protocols",
            "what a version speaks is said by deploying it with that protocol",
        ),
        (
            "drain_s",
            "what an instance has to finish is its release's spec.drain_timeout_s",
        ),
        (
            "drains",
            "what an instance has to finish is its release's spec.drain_timeout_s",
        ),
    ];
    for (field, why) in own {
        if given.is_some_and(|given| given.contains_key(field)) {
            return Err(SpecError::new(format!("{root}/{field}"), why));
        }
    }
    let mut config = merge(previous, given, &["limits", "timeouts", "tcp"], root)?;
    // An app that speaks something else from now on has no port at the gateways any more.
    if config.protocol != Protocol::Tcp && given.is_some_and(|given| !given.contains_key("tcp")) {
        config.tcp = Tcp::default();
    }
    Ok(config)
}

fn merge<T: Clone + Serialize + DeserializeOwned>(
    previous: &T,
    given: Option<&Map<String, Value>>,
    nested: &[&str],
    root: &str,
) -> Result<T, SpecError> {
    let Some(given) = given else {
        return Ok(previous.clone());
    };
    let Ok(Value::Object(mut whole)) = serde_json::to_value(previous) else {
        return Err(SpecError::new(root, "the previous value can't be read"));
    };
    overlay(&mut whole, given, nested);
    let merged: T = serde_path_to_error::deserialize(Value::Object(whole)).map_err(|error| {
        let field = format!("{root}{}", pointer(error.path()));
        SpecError::new(field, error.into_inner().to_string())
    })?;
    // Types that ignore unknown fields (for older readers' sake) still must not ignore a slip of the pen.
    if let Ok(understood) = serde_json::to_value(&merged)
        && let Some(field) = unknown_field(&Value::Object(given.clone()), &understood, nested, "")
    {
        return Err(SpecError::new(format!("{root}{field}"), "there is no such field"));
    }
    Ok(merged)
}

fn overlay(whole: &mut Map<String, Value>, given: &Map<String, Value>, nested: &[&str]) {
    for (key, value) in given {
        match (value, whole.get_mut(key)) {
            (Value::Null, _) => {
                whole.remove(key);
            }
            (Value::Object(fields), Some(Value::Object(old))) if nested.contains(&key.as_str()) => {
                overlay(old, fields, &[]);
            }
            _ => {
                whole.insert(key.clone(), value.clone());
            }
        }
    }
}

/// The first key of `given` that did not survive reading, looking into `nested` objects only.
fn unknown_field(given: &Value, understood: &Value, nested: &[&str], at: &str) -> Option<String> {
    let (Value::Object(given), Value::Object(understood)) = (given, understood) else {
        return None;
    };
    for (key, value) in given {
        let field = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
        match understood.get(key) {
            None => return Some(field),
            Some(inner) if nested.contains(&key.as_str()) => {
                if let Some(deeper) = unknown_field(value, inner, &[], &field) {
                    return Some(deeper);
                }
            }
            Some(_) => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(value: &Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn given_fields_win_and_the_others_stay() {
        let previous = ReleaseSpec {
            port: 3000,
            memory_mb: 64,
            env: [("A".to_owned(), "1".to_owned())].into(),
            ..ReleaseSpec::default()
        };
        let given = map(&json!({"memory_mb": 128, "health": {"path": "/up"}, "env": {"B": "2"}, "port": null}));
        let merged = release_spec(&previous, Some(&given)).unwrap();
        assert_eq!((merged.memory_mb, merged.port), (128, 8080));
        assert_eq!((merged.health.path.as_str(), merged.health.interval_ms), ("/up", 5_000));
        assert_eq!(merged.env.into_iter().collect::<Vec<_>>(), [("B".into(), "2".into())]);
        assert_eq!(release_spec(&previous, None).unwrap(), previous);
    }

    #[test]
    fn bad_fields_are_named() {
        let field = |given: Value| {
            release_spec(&ReleaseSpec::default(), Some(&map(&given)))
                .unwrap_err()
                .field
        };
        assert_eq!(field(json!({"memory_mb": -1})), "/spec/memory_mb");
        assert_eq!(field(json!({"memory_mb": 1e99})), "/spec/memory_mb");
        assert_eq!(field(json!({"privileged": true})), "/spec/privileged");
        assert_eq!(field(json!({"health": {"kind": "psychic"}})), "/spec/health/kind");
        assert_eq!(field(json!({"health": {"volumes": []}})), "/spec/health/volumes");
        assert_eq!(field(json!({"env": {"A": 1}})), "/spec/env/A");
        let config = |given: Value| {
            app_config(&AppConfig::default(), Some(&map(&given)), "")
                .unwrap_err()
                .field
        };
        assert_eq!(config(json!({"domain": ["a.b"]})), "/domain");
        assert_eq!(config(json!({"limits": {"denny": []}})), "/limits/denny");
        assert_eq!(config(json!({"limits": {"deny": ["10.0.0.0/99"]}})), "/limits/deny/0");
    }
}
