//! A share that fails is served again; settings of its own.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::cli::tests::config;
use crate::shares::registry::open_directory;

fn share(dir: &std::path::Path) -> Share {
    let new = NewShare {
        name: "a".parse().expect("a name"),
        root: open_directory(dir).expect("there"),
        directory: dir.to_owned(),
        socket: Socket::bind("test", &dir.join("a.sock")).expect("bound"),
        changes: Changes::default(),
    };
    Share::open(&config(&[]).expect("valid"), new, Span::none())
        .expect("a share")
        .0
}

#[test]
fn a_panic_and_a_failure_cost_a_moment_and_not_the_share() {
    let dir = tempfile::tempdir().expect("a directory");
    let share = share(dir.path());
    let rounds = AtomicU32::new(0);
    share.keep_on(|| {
        assert!(share.slot.take(), "the last guest has left");
        match rounds.fetch_add(1, Ordering::SeqCst) {
            0 => panic!("a defect, for this test"),
            1 => Err(ServeError::Io {
                action: "start a thread",
                cause: std::io::ErrorKind::OutOfMemory.into(),
            }),
            _ => Ok(()),
        }
    });
    assert_eq!(rounds.load(Ordering::SeqCst), 3);
    assert_eq!(share.server.client(), None);
}

#[test]
fn settings_of_a_share_go_before_the_daemons() {
    let changes = Changes {
        tag: Some("data".into()),
        readonly: true,
        dax: Some(DaxMode::Always),
        window_bytes: Some(4 << 20),
    };
    let config = |flags: &[&str]| config(flags).expect("valid");
    let changed = changes.apply(&config(&["--dax", "never"])).expect("valid");
    assert_eq!(changed.device.config.tag(), Some("data"));
    assert!(changed.share.readonly && changed.dax.readonly);
    assert_eq!(
        (changed.dax.mode, changed.dax.window_bytes),
        (DaxMode::Always, 4 << 20)
    );

    let same = Changes::default()
        .apply(&config(&["--readonly"]))
        .expect("valid");
    assert!(same.share.readonly, "the daemon's flag holds for all");
    let none = Changes {
        window_bytes: Some(0),
        ..Changes::default()
    };
    let none = none.apply(&config(&[])).expect("valid");
    assert_eq!(none.dax.mode, DaxMode::Never);
    let long = Changes {
        tag: Some("x".repeat(37)),
        ..Changes::default()
    };
    assert!(long.apply(&config(&[])).is_err());
}
