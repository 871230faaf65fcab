//! The tree is kept in order: licences, the direction of dependencies, migrations in step, files of a readable size, and
//! documentation that names only commands that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Licences that may be linked into the product; the same list stands in deny.toml.
const LICENCES: [&str; 14] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];
/// The longest source file, lines.
const LONGEST: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .expect("the workspace is there")
}

fn metadata() -> Value {
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(cargo.status.success(), "{}", String::from_utf8_lossy(&cargo.stderr));
    serde_json::from_slice(&cargo.stdout).expect("cargo writes JSON")
}

/// Whether an SPDX expression can be satisfied by [`LICENCES`].
fn acceptable(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    let plain = expression.replace(['(', ')'], " ");
    // No expression in use nests an OR in an AND other than as (A OR B) AND C: every AND part needs one known choice.
    plain
        .split(" AND ")
        .all(|part| part.split(" OR ").any(|licence| LICENCES.contains(&licence.trim())))
}

#[test]
fn licences_of_all_dependencies_are_permissive() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().expect("packages");
    let bad: Vec<String> = packages
        .iter()
        .filter(|package| !package["license"].as_str().is_some_and(acceptable))
        .map(|package| format!("{} {}: {}", package["name"], package["version"], package["license"]))
        .collect();
    assert!(
        packages.len() > 100 && bad.is_empty(),
        "not permissive, or not stated: {bad:#?}"
    );
    assert!(acceptable("(MIT OR GPL-3.0) AND Unicode-3.0") && acceptable("MIT/Apache-2.0"));
    assert!(!acceptable("GPL-3.0") && !acceptable("MIT AND GPL-2.0"));
}

#[test]
fn rooms_depend_downward_only() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().expect("packages");
    let mut seen = BTreeMap::new();
    for package in packages.iter().filter(|package| package["source"].is_null()) {
        let inner: BTreeSet<&str> = package["dependencies"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|d| d["path"].is_string() && d["kind"].is_null())
            .filter_map(|d| d["name"].as_str())
            .collect();
        seen.insert(package["name"].as_str().unwrap_or_default(), inner);
    }
    let model = BTreeSet::from(["caas-model"]);
    assert_eq!(seen.get("caas-backends"), Some(&model), "the model only");
    let with_admin = BTreeSet::from(["caas-admin", "caas-model"]);
    for room in ["caas-registry-sync", "caas-haproxy"] {
        assert_eq!(seen.get(room), Some(&with_admin), "{room} may depend on these only");
    }
    let with_certificates = BTreeSet::from(["caas-certificates", "caas-model"]);
    for room in ["caas-gateway", "caas-scheduler"] {
        assert_eq!(
            seen.get(room),
            Some(&with_certificates),
            "{room} may depend on these only"
        );
    }
    for room in ["caas-model", "caas-certificates", "caas-admin"] {
        assert_eq!(
            seen.get(room),
            Some(&BTreeSet::new()),
            "{room} depends on no other room"
        );
    }
}

#[test]
fn both_databases_have_the_same_migrations() {
    let names = |dialect: &str| -> BTreeSet<String> {
        let folder = fs::read_dir(root().join("migrations").join(dialect)).expect("the folder is there");
        folder
            .flatten()
            .map(|file| file.file_name().to_string_lossy().into_owned())
            .collect()
    };
    assert!(!names("mysql").is_empty());
    assert_eq!(names("mysql"), names("sqlite"));
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for path in fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
    {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn no_source_file_outgrows_its_reader() {
    let mut files = Vec::new();
    sources(&root(), &mut files);
    assert!(files.len() > 50, "only {} source files found", files.len());
    let long: Vec<String> = files
        .iter()
        .map(|path| (path, fs::read_to_string(path).unwrap_or_default().lines().count()))
        .filter(|(_, lines)| *lines > LONGEST)
        .map(|(path, lines)| format!("{}: {lines} lines", path.display()))
        .collect();
    assert!(long.is_empty(), "longer than {LONGEST} lines: {long:#?}");
}

#[test]
fn the_readme_names_only_commands_that_exist() {
    let caas = e2e::roles::binary().expect("caas is built");
    let help = |args: &[&str]| {
        let out = Command::new(&caas)
            .args(args)
            .arg("--help")
            .output()
            .expect("caas runs");
        out.status
            .success()
            .then(|| String::from_utf8_lossy(&out.stdout).into_owned())
    };
    let makefile = fs::read_to_string(root().join("Makefile")).expect("a Makefile");
    let readme = fs::read_to_string(root().join("README.md")).expect("a README");
    let (mut code, mut checked) = (false, 0);
    for line in readme.lines() {
        if line.trim_start().starts_with("```") {
            code = !code;
            continue;
        }
        for command in line.split([';', '|', '&']).filter(|_| code) {
            let words: Vec<&str> = command.split('#').next().unwrap_or("").split_whitespace().collect();
            match words[..] {
                ["caas" | "./caas" | "target/release/caas", verb, ref rest @ ..]
                    if verb.starts_with(char::is_alphabetic) =>
                {
                    let text = help(&[verb]).unwrap_or_else(|| panic!("README: there is no `caas {verb}`: {line}"));
                    let nested = rest.first().filter(|word| text.contains(&format!("\n  {word} ")));
                    let text = nested.and_then(|word| help(&[verb, word])).unwrap_or(text);
                    for flag in rest.iter().filter(|word| word.starts_with("--") && word.len() > 2) {
                        let flag = flag.split('=').next().unwrap_or(flag);
                        assert!(text.contains(flag), "README: `caas {verb}` has no {flag}: {line}");
                    }
                    checked += 1;
                }
                ["make", target, ..] => {
                    assert!(
                        makefile.contains(&format!("\n{target}:")),
                        "README: there is no `make {target}`"
                    );
                    checked += 1;
                }
                _ => {}
            }
        }
    }
    assert!(checked >= 5, "only {checked} commands found in the README");
}
