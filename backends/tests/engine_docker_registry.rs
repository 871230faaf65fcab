//! Docker as an engine, where it pulls from a private registry, and where it is reached over TLS.

#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::time::{Duration, Instant};

use bollard::auth::DockerCredentials;
use bollard::query_parameters::{PushImageOptions, RemoveImageOptions, TagImageOptions};
use caas_backends::engine::{EngineOptions, opener};
use futures::TryStreamExt as _;
use model::PlatformId;
use model::contract::engine as contract;
use model::engine::EngineError;
use model::store::RegistryCredentials;

#[path = "support/dockerhost.rs"]
mod dockerhost;
use dockerhost::{DockerHost, IMAGE, engine, fixture, import, own, raw, with_image};

const REGISTRY: &str = "127.0.0.1:5000";
/// Its base64 has characters that differ between the two alphabets.
const PASSWORD: &str = "???>>>~~~ü";
const DEADLINE: Duration = Duration::from_secs(30);

fn credentials(username: &str, password: &str) -> Option<RegistryCredentials> {
    Some(RegistryCredentials {
        registry: REGISTRY.into(),
        username: username.into(),
        password: password.into(),
    })
}

/// A registry on the host that wants a password, and a number to signal it by.
async fn with_registry(host: &mut DockerHost) -> usize {
    // `$2y$` is bcrypt, the only one that the registry takes.
    let hash = |password: &str| {
        let script = r#"print crypt($ARGV[0], '$2y$05$abcdefghijklmnopqrstuu')"#;
        let out = Command::new("perl").args(["-e", script, password]).output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    let dir = host.dir().to_owned();
    std::fs::write(
        dir.join("htpasswd"),
        format!("ci:{}\ntricky:{}\n", hash("simple"), hash(PASSWORD)),
    )
    .unwrap();
    let config = format!(
        "version: 0.1\nstorage:\n  filesystem: {{rootdirectory: {0}/registry}}\nhttp:\n  addr: {REGISTRY}\n  secret: test\n\
         auth:\n  htpasswd: {{realm: test, path: {0}/htpasswd}}\n",
        dir.display()
    );
    let file = dir.join("registry.yml");
    std::fs::write(&file, config).unwrap();
    start_registry(host).await
}

async fn start_registry(host: &mut DockerHost) -> usize {
    let file = host.dir().join("registry.yml").display().to_string();
    let registry = host.spawn("docker-registry", &["serve", &file]);
    let since = Instant::now();
    let url = format!("http://{REGISTRY}/v2/");
    while !host
        .command("curl")
        .args(["-s", "--max-time", "1", &url])
        .output()
        .unwrap()
        .status
        .success()
    {
        assert!(since.elapsed() < DEADLINE, "the registry does not answer");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    registry
}

/// Pushes a local image and removes every trace of it from the host.
async fn push(host: &DockerHost, local: &str, repository: &str, tag: &str) {
    let docker = raw(host);
    let name = format!("{REGISTRY}/{repository}");
    let options = TagImageOptions {
        repo: Some(name.clone()),
        tag: Some(tag.into()),
    };
    docker.tag_image(local, Some(options)).await.unwrap();
    let ci = DockerCredentials {
        username: Some("ci".into()),
        password: Some("simple".into()),
        ..Default::default()
    };
    let options = PushImageOptions {
        tag: Some(tag.into()),
        ..Default::default()
    };
    docker
        .push_image(&name, Some(options), Some(ci))
        .try_for_each(|_| async { Ok(()) })
        .await
        .unwrap();
    remove_image(host, &format!("{name}:{tag}")).await;
    remove_image(host, local).await;
}

async fn remove_image(host: &DockerHost, image: &str) {
    let options = RemoveImageOptions {
        force: true,
        ..Default::default()
    };
    raw(host).remove_image(image, Some(options), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn engine_pulls_from_a_private_registry() {
    let Some(mut host) = own().await else { return };
    host.start_daemon();
    let registry = with_registry(&mut host).await;
    let host_with_image = with_image(host).await;
    let mut host = host_with_image;
    push(&host, IMAGE, "team/hello", "1").await;
    let engine = engine(&host.url());
    let tag = format!("{REGISTRY}/team/hello:1");
    let right = credentials("tricky", PASSWORD);
    let wrong = credentials("tricky", "wrong");

    // Tag to digest.
    let digest = engine.image_digest(&tag, right.as_ref()).await.unwrap();
    assert!(digest.starts_with("sha256:") && digest.len() == 71, "{digest}");
    let image = format!("{REGISTRY}/team/hello@{digest}");
    for missing in [format!("{REGISTRY}/team/hello:9"), format!("{REGISTRY}/team/nothing:1")] {
        let answer = engine.image_digest(&missing, right.as_ref()).await;
        assert_eq!(answer, Err(EngineError::ImageNotFound(missing.clone())));
        let answer = engine.image_pull(&missing, right.as_ref(), DEADLINE).await;
        assert_eq!(answer, Err(EngineError::ImageNotFound(missing)));
    }
    for bad in [wrong.as_ref(), None] {
        let answer = engine.image_digest(&tag, bad).await;
        assert!(matches!(answer, Err(EngineError::RegistryDenied { .. })), "{answer:?}");
        let answer = engine.image_pull(&image, bad, DEADLINE).await;
        assert!(matches!(answer, Err(EngineError::RegistryDenied { .. })), "{answer:?}");
    }

    // By digest, once.
    assert_eq!(engine.image_present(&image).await, Ok(false));
    assert_eq!(engine.image_pull(&image, right.as_ref(), DEADLINE).await, Ok(true));
    assert_eq!(engine.image_present(&image).await, Ok(true));
    assert_eq!(engine.image_pull(&image, right.as_ref(), DEADLINE).await, Ok(false));
    let f = model::contract::engine::Fixture {
        image: image.clone(),
        ..fixture(&host, 22_000)
    };
    contract::launch_is_idempotent(&f).await;

    // The registry hangs: our deadline, and it is not the engine that is silent.
    remove_image(&host, &image).await;
    host.signal(registry, "-STOP");
    let since = Instant::now();
    let answer = engine.image_pull(&image, right.as_ref(), Duration::from_secs(2)).await;
    assert!(
        matches!(answer, Err(EngineError::RegistryUnreachable { .. })),
        "{answer:?}"
    );
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    assert_eq!(engine.ping().await, Ok(()));

    // The registry is down; an image that is there needs none.
    host.signal(registry, "-KILL");
    let since = Instant::now();
    let answer = engine.image_pull(&image, right.as_ref(), DEADLINE).await;
    assert!(
        matches!(answer, Err(EngineError::RegistryUnreachable { .. })),
        "{answer:?}"
    );
    let answer = engine.image_digest(&tag, right.as_ref()).await;
    assert!(
        matches!(answer, Err(EngineError::RegistryUnreachable { .. })),
        "{answer:?}"
    );
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
    start_registry(&mut host).await;
    assert_eq!(engine.image_pull(&image, right.as_ref(), DEADLINE).await, Ok(true));
}

#[tokio::test(flavor = "multi_thread")]
async fn engine_disk_full() {
    let Some(mut host) = own().await else { return };
    host.start_daemon();
    with_registry(&mut host).await;
    // Does not get smaller when it is packed.
    let mut state = 1_u64;
    let noise: Vec<u8> = (0..8 << 20)
        .flat_map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 32).to_le_bytes().into_iter().take(4)
        })
        .collect();
    import(&raw(&host), "caas-test-big:1", "big", &noise).await;
    push(&host, "caas-test-big:1", "big", "1").await;
    host.kill_daemon();
    let data = host.dir().join("data").display().to_string();
    let mounted = host
        .command("mount")
        .args(["-t", "tmpfs", "-o", "size=24m", "tmpfs", &data])
        .status()
        .unwrap();
    assert!(mounted.success());
    host.start_daemon();
    let engine = engine(&host.url());
    let image = format!("{REGISTRY}/big:1");
    let answer = engine
        .image_pull(&image, credentials("ci", "simple").as_ref(), DEADLINE)
        .await;
    assert!(matches!(answer, Err(EngineError::DiskFull(_))), "{answer:?}");
    assert_eq!(engine.ping().await, Ok(()));
}

/// A CA, a server certificate for the host, and two client folders: one signed by that CA, one by another.
fn make_pki(host: &DockerHost) {
    let script = r#"
        set -e; cd "$1"; mkdir -p pki/good pki/bad; cd pki
        ca() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $1.key -out $1.crt -days 2 \
            -subj /CN=$1 -addext keyUsage=critical,keyCertSign,cRLSign; }
        sign() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $1.key -out $1.csr -subj /CN=$1
            printf 'subjectAltName=%s\nextendedKeyUsage=%s\nkeyUsage=digitalSignature\n' "$3" "$4" > $1.ext
            openssl x509 -req -in $1.csr -CA $2.crt -CAkey $2.key -CAcreateserial -days 2 -out $1.crt -extfile $1.ext; }
        ca ca; ca other
        sign server ca "IP:$2" serverAuth; sign client ca DNS:client clientAuth; sign stranger other DNS:client clientAuth
        cp ca.crt good/ca.pem; cp client.crt good/cert.pem; cp client.key good/key.pem
        cp ca.crt bad/ca.pem; cp stranger.crt bad/cert.pem; cp stranger.key bad/key.pem"#;
    let out = Command::new("bash")
        .args(["-c", script, "pki"])
        .arg(host.dir())
        .arg(host.address.to_string())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn engine_over_tls() {
    let Some(mut host) = own().await else { return };
    make_pki(&host);
    let pki = host.dir().join("pki");
    let file = |name: &str| pki.join(name).display().to_string();
    host.extra = [
        "--tlsverify",
        "--tlscacert",
        &file("ca.crt"),
        "--tlscert",
        &file("server.crt"),
        "--tlskey",
        &file("server.key"),
        "-H",
        &format!("tcp://{}:2376", host.address),
    ]
    .map(str::to_owned)
    .to_vec();
    host.start_daemon();
    let host = with_image(host).await;
    let url = format!("https://{}:2376", host.address);
    let open = |dir: &str| {
        opener(EngineOptions {
            tls_dir: Some(pki.join(dir)),
        })(&url)
        .unwrap()
    };
    let mut f = fixture(&host, 22_100);
    f.engine = open("good");
    contract::answers(&f).await;
    contract::events_are_told(&f).await;
    contract::logs_are_read(&f).await;
    let since = Instant::now();
    f.engine.ping().await.unwrap();
    println!("ping over TLS: {:?}", since.elapsed());
    assert_eq!(f.engine.list(&PlatformId::random()).await, Ok(Vec::new()));
    // A client of another CA; a server of another CA; no TLS at all: unreachable, each with a reason.
    let refused = open("bad").ping().await.unwrap_err();
    assert!(matches!(refused, EngineError::Unreachable { .. }), "{refused}");
    std::fs::copy(pki.join("other.crt"), pki.join("bad/ca.pem")).unwrap();
    let refused = open("bad").ping().await.unwrap_err();
    assert!(
        matches!(&refused, EngineError::Unreachable { message, .. } if message.contains("certificate")),
        "{refused}"
    );
    let refused = engine(&format!("tcp://{}:2376", host.address))
        .ping()
        .await
        .unwrap_err();
    assert!(
        matches!(refused, EngineError::Other(_) | EngineError::Unreachable { .. }),
        "{refused}"
    );
}
