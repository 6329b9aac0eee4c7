//! Two guests with a daemon each write to one SQLite database, which `--locks`
//! and nothing else keeps them from spoiling.
//!
//! With the log (WAL) its index has to be memory that both share, so it goes
//! through the window; the rest must not, since a guest does not ask how long
//! a file with DAX is before it reads: the log's end would be an I/O error. The
//! guest's kernel warns once about the index, whose time changes while it is
//! mapped (`dax_disassociate_entry`); nothing comes of it.

use std::path::Path;
use std::time::{Duration, Instant};

use daxwindow_vm::{Dax, ShareOptions, Vm, VmOptions};

use crate::counted::Counted;

/// Of each guest, on each database.
const TRANSACTIONS: usize = 60;
const LIMIT: Duration = Duration::from_secs(240);

/// A database, and how it is shared.
struct Database {
    name: &'static str,
    journal: &'static str,
    dax: Dax,
    flags: &'static [&'static str],
}

const DATABASES: [Database; 3] = [
    Database {
        name: "requests",
        journal: "delete",
        dax: Dax::Never,
        flags: &[],
    },
    Database {
        name: "window",
        journal: "delete",
        dax: Dax::Always,
        flags: &[],
    },
    // The index of the log is memory that all writers share, which the window
    // makes of it; the log itself grows with every transaction, and its size
    // has to be asked for.
    Database {
        name: "wal",
        journal: "wal",
        dax: Dax::Inode,
        flags: &["--dax-min-size", "0", "--dax-include", "*-shm"],
    },
];

fn boot(folder: &Path) -> Vm {
    let share = |database: &Database| {
        let mut share = ShareOptions::new(folder.join(database.name), database.dax);
        share.tag = database.name.into();
        share.mount_at = Some(format!("/{}", database.name));
        share.window_bytes = 32 << 20;
        let flags = ["--locks"].iter().chain(database.flags);
        share.daemon_arguments = flags.map(|flag| (*flag).to_owned()).collect();
        share
    };
    let mut options = VmOptions::new(DATABASES.iter().map(share).collect());
    options.memory_bytes = 256 << 20;
    options.tools = vec!["sqlite3".into()];
    Vm::boot(&options).expect("boots")
}

fn run(vm: &mut Vm, script: &str) -> String {
    let output = vm.sh_within(script, LIMIT).and_then(|output| output.ok());
    output.unwrap_or_else(|error| panic!("{script}: {error:#}"))
}

/// Half of the transactions by one program, the others by one each.
fn writes(database: &Database, who: &str) -> String {
    let path = format!("/{}/db", database.name);
    let transaction = |n: &str| {
        format!(
            "BEGIN IMMEDIATE; INSERT INTO rows VALUES ('{who}', {n}, randomblob(3000)); \
             UPDATE counter SET n = n + 1; COMMIT;"
        )
    };
    let (half, one) = (TRANSACTIONS / 2, transaction("'$i'"));
    let sqlite = format!("sqlite3 -batch -bail -cmd '.timeout 100000' {path}");
    format!(
        "set -e\n\
         for i in $(seq 1 {half}); do echo \"{}\"; done >/tmp/sql\n\
         {sqlite} </tmp/sql\n\
         for i in $(seq {} {TRANSACTIONS}); do {sqlite} \"{one}\"; done\n",
        transaction("$i"),
        half + 1,
    )
}

#[test]
fn two_guests_write_to_one_database() {
    let place = tempfile::tempdir().expect("directory");
    for database in &DATABASES {
        std::fs::create_dir(place.path().join(database.name)).expect("made");
    }
    let (mut one, mut other) = std::thread::scope(|scope| {
        let other = scope.spawn(|| boot(place.path()));
        (boot(place.path()), other.join().expect("boots"))
    });
    for (index, database) in DATABASES.iter().enumerate() {
        let Database { name, journal, .. } = database;
        let mode = run(
            &mut one,
            &format!(
                "sqlite3 /{name}/db 'PRAGMA journal_mode={journal}; CREATE TABLE rows (who, n, pad); \
                 CREATE TABLE counter (n); INSERT INTO counter VALUES (0);'"
            ),
        );
        assert_eq!(mode.trim(), *journal);
        let start = Instant::now();
        std::thread::scope(|scope| {
            let theirs = scope.spawn(|| run(&mut other, &writes(database, "other")));
            run(&mut one, &writes(database, "one"));
            theirs.join().expect("written");
        });
        println!(
            "{name}: {} transactions in {:.1?}",
            2 * TRANSACTIONS,
            start.elapsed()
        );
        let check = "PRAGMA integrity_check; SELECT n FROM counter; \
                     SELECT who, count(*), count(DISTINCT n) FROM rows GROUP BY who; \
                     PRAGMA journal_mode;";
        let whole = format!(
            "ok\n{}\none|{TRANSACTIONS}|{TRANSACTIONS}\nother|{TRANSACTIONS}|{TRANSACTIONS}\n{journal}\n",
            2 * TRANSACTIONS
        );
        for vm in [&mut one, &mut other] {
            let found = run(vm, &format!("sqlite3 /{name}/db '{check}'"));
            assert_eq!(found, whole, "{name}");
            let counted = Counted::by(vm, index);
            assert!(counted.requests("Setlk") > 0, "{counted:?}");
            let mapped = counted.window("setups") > 0;
            assert_eq!(mapped, database.dax != Dax::Never, "{name}: {counted:?}");
        }
    }
    for vm in [&mut one, &mut other] {
        vm.shutdown().expect("powers off");
        // Of the index, which the window maps and another guest changes.
        let known = ["dax_disassociate_entry", "Call Trace:"];
        let mut warnings = vm.kernel_warnings();
        warnings.retain(|line| !known.iter().any(|part| line.contains(part)));
        assert_eq!(warnings, Vec::<String>::new());
    }
}
