//! What requests make of apps, step by step.

use super::*;

pub(crate) const NOW: Timestamp = Timestamp::from_millis(1_000_000);

pub(crate) fn id() -> AppId {
    "hello".parse().unwrap()
}

pub(crate) fn deploy(version: &str, instances: Option<u32>) -> Change {
    Change::Deploy {
        version: version.parse().unwrap(),
        digest: "sha256:0".into(),
        spec: Box::default(),
        config: Box::default(),
        instances,
    }
}

/// Release `number` with that version of its own.
pub(crate) fn released(number: u32, protocol: Option<Protocol>) -> Release {
    Release {
        app: id(),
        number,
        version: number.to_string().parse().unwrap(),
        digest: "sha256:0".into(),
        spec: ReleaseSpec::default(),
        protocol,
        created_at: NOW,
    }
}

pub(crate) fn rollback(number: u32) -> Change {
    Change::Rollback(Box::new(released(number, None)))
}

pub(crate) fn at<'a>(id: &'a AppId, app: Option<&'a App>) -> Situation<'a> {
    Situation {
        id,
        app,
        version: None,
        open: None,
        now: NOW,
    }
}

/// The same app, whose release was never fully routed.
pub(crate) fn unproven(app: &App) -> App {
    App {
        way_back: Some(model::WayBack::default()),
        ..app.clone()
    }
}

/// The app after deploys of which the last was fully routed.
pub(crate) fn app_at(release: u32, previous: u32) -> App {
    App {
        release,
        last_release: release,
        previous_release: previous,
        instances: 3,
        ..new_app(&id(), NOW)
    }
}

#[test]
fn the_first_deploy_makes_the_app() {
    let id = id();
    let draft = decide(&at(&id, None), &deploy("1", None)).unwrap();
    assert_eq!(
        (draft.app.release, draft.app.last_release, draft.app.previous_release),
        (1, 1, 0)
    );
    assert_eq!((draft.app.instances, draft.app.status), (1, AppStatus::Running));
    assert_eq!(draft.release.unwrap().number, 1);
    assert_eq!(draft.app.operation, Some(draft.operation.id));
    assert_eq!(draft.operation.release, Some(1));
}

#[test]
fn a_deploy_remembers_the_last_release_that_was_routed() {
    let id = id();
    let app = app_at(4, 2);
    let routed = decide(&at(&id, Some(&app)), &deploy("5", Some(7))).unwrap();
    assert_eq!(
        (routed.app.release, routed.app.previous_release, routed.app.instances),
        (5, 4, 7)
    );
    let never_routed = decide(&at(&id, Some(&unproven(&app))), &deploy("5", None)).unwrap();
    assert_eq!((never_routed.app.previous_release, never_routed.app.instances), (2, 3));
}

#[test]
fn a_deploy_starts_a_stopped_app_and_never_a_leaving_one() {
    let id = id();
    let mut app = app_at(1, 0);
    app.status = AppStatus::Stopped;
    let draft = decide(&at(&id, Some(&app)), &deploy("1", None)).unwrap();
    assert_eq!(draft.app.status, AppStatus::Running);
    app.status = AppStatus::Removing;
    for change in [deploy("1", None), Change::Scale(1), Change::Start, Change::Remove] {
        assert_eq!(
            decide(&at(&id, Some(&app)), &change),
            Err(Refusal::Removing(id.clone()))
        );
    }
}

#[test]
fn nothing_but_a_deploy_makes_an_app() {
    let id = id();
    for change in [
        Change::Scale(1),
        Change::Restart,
        Change::Stop,
        Change::Start,
        rollback(1),
        Change::Remove,
        Change::Configure(Box::default()),
    ] {
        assert_eq!(decide(&at(&id, None), &change), Err(Refusal::NoSuchApp(id.clone())));
    }
}

#[test]
fn instances_are_bounded() {
    let id = id();
    let app = app_at(1, 0);
    let scale = |n| decide(&at(&id, Some(&app)), &Change::Scale(n));
    assert_eq!(scale(0).unwrap().app.instances, 0);
    assert_eq!(scale(1_000).unwrap().app.instances, 1_000);
    assert_eq!(scale(1_001), Err(Refusal::TooMany(1_001)));
    assert_eq!(
        decide(&at(&id, None), &deploy("1", Some(u32::MAX))),
        Err(Refusal::TooMany(u32::MAX))
    );
}

#[test]
fn a_rollback_goes_there_and_the_next_one_back_again() {
    let id = id();
    let app = app_at(3, 2);
    let back = decide(&at(&id, Some(&app)), &rollback(2)).unwrap();
    assert_eq!(
        (back.app.release, back.app.previous_release, back.app.last_release),
        (2, 3, 3)
    );
    let mut settled = back.app;
    settled.way_back = None;
    let forth = decide(&at(&id, Some(&settled)), &rollback(3)).unwrap();
    assert_eq!((forth.app.release, forth.app.previous_release), (3, 2));
    // From a release that never worked there is no way back to it.
    let broken = decide(&at(&id, Some(&unproven(&app))), &rollback(2)).unwrap();
    assert_eq!((broken.app.release, broken.app.previous_release), (2, 0));
    assert_eq!(
        decide(&at(&id, Some(&app)), &rollback(3)),
        Err(Refusal::AlreadyAt(id.clone(), 3))
    );
}

#[test]
fn what_a_failed_deploy_gives_back_is_what_was_there_before_it() {
    let id = id();
    let app = app_at(3, 2);
    let configured = |domain: &str| AppConfig {
        domains: vec![domain.into()],
        ..AppConfig::default()
    };
    let deploy = |domain: &str, instances| Change::Deploy {
        version: "9".parse().unwrap(),
        digest: "sha256:0".into(),
        spec: Box::default(),
        config: Box::new(configured(domain)),
        instances,
    };
    let back = |app: &App| {
        let mut app = app.clone();
        app.turn_back();
        app
    };
    let next = |app: &App, change: &Change| decide(&at(&id, Some(app)), change).unwrap().app;
    let first = next(&app, &deploy("a.example.com", Some(10)));
    assert_eq!((first.instances, first.config.domains.len()), (10, 1));
    assert_eq!(
        back(&first),
        App {
            last_release: 4,
            operation: first.operation.clone(),
            ..app.clone()
        }
    );
    // A second one before the first came through.
    let second = next(&first, &deploy("b.example.com", Some(20)));
    let returned = back(&second);
    assert_eq!((returned.release, returned.previous_release), (3, 2));
    assert_eq!((returned.instances, &returned.config), (3, &app.config));
    // By hand it is the same.
    let by_hand = next(&second, &rollback(3));
    assert_eq!((by_hand.release, by_hand.previous_release), (3, 2));
    assert_eq!((by_hand.instances, &by_hand.config), (3, &app.config));
    let further = next(&second, &rollback(1));
    assert_eq!((further.release, further.previous_release), (1, 3));
    assert_eq!(further.config, app.config);
    // What somebody says meanwhile stands.
    let scaled = next(&second, &Change::Scale(7));
    assert_eq!((back(&scaled).instances, back(&scaled).config), (7, app.config.clone()));
    let said = configured("c.example.com");
    let told = next(&second, &Change::Configure(Box::new(said.clone())));
    assert_eq!((back(&told).instances, back(&told).config), (3, said));
    // Without a change there is nothing to be given back.
    let plain = next(&app, &super::tests::deploy("9", None));
    let way_back = plain.way_back.unwrap();
    assert_eq!(
        (way_back.config, way_back.instances, way_back.previous_release),
        (None, None, 2)
    );
}

#[test]
fn what_an_app_speaks_is_that_of_the_release_that_it_is_at() {
    let id = id();
    let app = app_at(1, 0);
    let speaking = |version: &str, protocol| Change::Deploy {
        version: version.parse().unwrap(),
        digest: "sha256:0".into(),
        spec: Box::default(),
        config: Box::new(AppConfig {
            protocol,
            ..AppConfig::default()
        }),
        instances: None,
    };
    let (http, h2c) = (Protocol::Http, Protocol::H2c);
    let draft = decide(&at(&id, Some(&app)), &speaking("2", h2c)).unwrap();
    assert_eq!(draft.release.unwrap().protocol, Some(h2c));
    assert_eq!(draft.app.config.protocol, h2c);
    // It fails, whatever was configured meanwhile.
    let told = AppConfig {
        redirect_https: true,
        ..draft.app.config.clone()
    };
    let mut told = decide(&at(&id, Some(&draft.app)), &Change::Configure(Box::new(told)))
        .unwrap()
        .app;
    told.turn_back();
    assert_eq!((told.config.protocol, told.config.redirect_https), (http, true));
    // It comes through, and somebody rolls back and forth.
    let mut at_2 = draft.app;
    at_2.way_back = None;
    let to = |number, protocol| Change::Rollback(Box::new(released(number, Some(protocol))));
    let mut back = decide(&at(&id, Some(&at_2)), &to(1, http)).unwrap().app;
    assert_eq!((back.release, back.config.protocol), (1, http));
    let mut failed = back.clone();
    failed.turn_back();
    assert_eq!((failed.release, failed.config.protocol), (2, h2c));
    back.way_back = None;
    let forth = decide(&at(&id, Some(&back)), &to(2, h2c)).unwrap().app;
    assert_eq!(forth.config.protocol, h2c);
    // From what never worked back to what did.
    let left = decide(&at(&id, Some(&forth)), &to(1, http)).unwrap().app;
    assert_eq!((left.release, left.config.protocol), (1, http));
    // Releases of before are at what the app speaks.
    let older = decide(&at(&id, Some(&at_2)), &rollback(1)).unwrap().app;
    assert_eq!(older.config.protocol, h2c);

    // A configuration says how traffic gets there, not what is spoken.
    let refused = decide(&at(&id, Some(&at_2)), &Change::Configure(Box::default()));
    assert_eq!(refused, Err(Refusal::ProtocolOfRelease(id.clone(), "h2c", "http")));
    // One version speaks one protocol, as long as it runs and has ever worked.
    let version = "2".parse().unwrap();
    let same = |app: &App, change: &Change| {
        let situation = Situation {
            version: Some(&version),
            ..at(&id, Some(app))
        };
        decide(&situation, change).map(|draft| draft.app.config.protocol)
    };
    let otherwise = Err(Refusal::SpeaksOtherwise(id.clone(), version.clone(), "h2c", "http"));
    assert_eq!(same(&at_2, &speaking("2", http)), otherwise);
    assert_eq!(same(&at_2, &to(2, http)), Err(Refusal::AlreadyAt(id.clone(), 2)));
    let named_2 = Change::Rollback(Box::new(Release {
        version: version.clone(),
        ..released(1, Some(http))
    }));
    assert_eq!(same(&at_2, &named_2), otherwise);
    assert_eq!(same(&at_2, &speaking("3", http)), Ok(http));
    assert_eq!(same(&at_2, &speaking("2", h2c)), Ok(h2c));
    assert_eq!(same(&unproven(&at_2), &speaking("2", http)), Ok(http));
    let stopped = App {
        status: AppStatus::Stopped,
        ..at_2.clone()
    };
    assert_eq!(same(&stopped, &speaking("2", http)), Ok(http));
    // To bytes and back the app goes as a whole.
    assert_eq!(same(&at_2, &speaking("2", Protocol::Tcp)), Ok(Protocol::Tcp));
}

#[test]
fn a_deploy_on_its_way_survives_scaling_and_configuring() {
    let id = id();
    let app = app_at(4, 3);
    let mut open = operation(&id, OperationKind::Deploy, Some(4), NOW);
    open.state = OperationState::Blocked;
    let app = unproven(&app);
    let situation = Situation {
        open: Some(&open),
        ..at(&id, Some(&app))
    };
    for change in [Change::Scale(9), Change::Configure(Box::default()), Change::Restart] {
        let draft = decide(&situation, &change).unwrap();
        assert_eq!(draft.operation.kind, OperationKind::Deploy);
        assert_eq!(draft.operation.release, Some(4));
        assert_eq!(draft.operation.state, OperationState::Blocked);
        assert_ne!(draft.operation.id, open.id);
    }
    let stop = decide(&situation, &Change::Stop).unwrap();
    assert_eq!(stop.operation.kind, OperationKind::Stop);
}

#[test]
fn a_configuration_is_done_as_soon_as_it_is_recorded() {
    let id = id();
    let app = app_at(1, 0);
    let draft = decide(&at(&id, Some(&app)), &Change::Configure(Box::default())).unwrap();
    assert_eq!(draft.operation.state, OperationState::Succeeded);
    assert_eq!(draft.app.release, 1);
}

#[test]
fn a_stopped_app_is_not_restarted() {
    let id = id();
    let mut app = app_at(1, 0);
    let draft = decide(&at(&id, Some(&app)), &Change::Restart).unwrap();
    assert_eq!(draft.app.restart_before, Some(NOW));
    app.status = AppStatus::Stopped;
    assert_eq!(
        decide(&at(&id, Some(&app)), &Change::Restart),
        Err(Refusal::Stopped(id.clone()))
    );
}
