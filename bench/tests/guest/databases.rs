//! Databases on shares with DAX and without, whose virtual machine is killed
//! in the middle of transactions: SQLite with `synchronous=FULL`, with a
//! rollback journal and with a write-ahead log, and PostgreSQL as it comes,
//! with checksums. Each time the machine comes up again every database must be
//! consistent, and every commit that was told to the host must be there.
//!
//! For more crashes than two: `DAXWINDOW_CRASHES=20 cargo test --release -p
//! daxwindow-bench --test guest databases -- --nocapture`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use daxwindow_vm::Vm;
use rustix::process::{Pid, Signal, kill_process};

use crate::counted::Counted;
use crate::workshop::{SHARES, Workshop};

/// Ten times what it takes, for machines that have other work as well.
const LIMIT: Duration = Duration::from_secs(600);
/// How often the machine is killed.
const CRASHES: &str = "DAXWINDOW_CRASHES";
/// Commits of each database before it is.
const COMMITS: usize = 3;
/// Rows of a transaction.
const ROWS: usize = 50;
/// What all accounts hold together, whatever is moved between them.
const TOTAL: usize = 1000;
const BIN: &str = "/usr/lib/postgresql/17/bin";
/// Who runs PostgreSQL, which refuses to be run by root: Debian's daemon.
const USER: u32 = 1;

const KINDS: [&str; 3] = ["delete", "wal", "postgres"];

/// What the scripts call.
const FUNCTIONS: &str = r#"
as_user() { setpriv --reuid 1 --regid 1 --clear-groups "$@"; }
# ask SHARE/KIND SQL
ask() {
    case $1 in
    */postgres) $BIN/psql -h "/run/${1%/*}" -U postgres -qAtX -v ON_ERROR_STOP=1 -c "$2" postgres ;;
    *) sqlite3 -bail -cmd 'PRAGMA synchronous=FULL' -cmd '.timeout 60000' "/mnt/$1.db" "$2" ;;
    esac
}
start() {
    for share in dax plain; do
        mkdir -p /run/$share && chown 1:1 /run/$share
        rm -f /mnt/$share/postgres/postmaster.pid
        as_user $BIN/postgres -D /mnt/$share/postgres -k /run/$share >/run/$share.log 2>&1 3<&- &
    done
    for share in dax plain; do
        n=0
        until ask $share/postgres 'SELECT 1' >/dev/null 2>&1; do
            sleep 0.5; n=$((n+1))
            [ $n -lt 240 ] || { cat /run/$share.log >&2; exit 1; }
        done
    done
}
make() {
    ask $1 "CREATE TABLE log(txn integer, i integer, payload text, PRIMARY KEY(txn, i));
        CREATE TABLE accounts(id integer PRIMARY KEY, balance integer);
        INSERT INTO accounts SELECT value, 100 FROM $2;"
}
# commit SHARE/KIND, for ever; SERIES is generate_series of ROWS as value
commit() {
    n=$(ask $1 'SELECT coalesce(max(txn), 0) FROM log') || return
    while :; do
        n=$((n+1))
        ask $1 "BEGIN;
            INSERT INTO log SELECT $n, value, $3 FROM $2;
            UPDATE accounts SET balance = balance - $n WHERE id = $((n % 10 + 1));
            UPDATE accounts SET balance = balance + $n WHERE id = $(((n + 3) % 10 + 1));
            COMMIT;" && echo "committed $1 $n"
    done
}
# One line: the name, what the database says of itself, and four numbers.
check() {
    case $1 in
    */postgres) said=$(ask $1 "CREATE EXTENSION IF NOT EXISTS amcheck;
        SELECT bt_index_check('log_pkey', true)" >/dev/null && echo ok) ;;
    *) said=$(ask $1 'PRAGMA integrity_check') ;;
    esac
    numbers=$(ask $1 "SELECT coalesce(max(txn), 0) FROM log;
        SELECT count(DISTINCT txn) FROM log;
        SELECT count(*) FROM (SELECT txn FROM log GROUP BY txn HAVING count(*) <> $ROWS) AS bad;
        SELECT sum(balance) FROM accounts;") || numbers=failed
    echo $1 $said $numbers
}
"#;

fn prologue() -> String {
    format!("BIN={BIN} ROWS={ROWS}\n{FUNCTIONS}")
}

fn names() -> Vec<String> {
    let of = |share: &str| KINDS.map(|kind| format!("{share}/{kind}"));
    SHARES.iter().flat_map(|(share, _)| of(share)).collect()
}

/// Set-returning functions and random text, in each dialect.
fn series(name: &str, rows: usize) -> String {
    match name.ends_with("postgres") {
        true => format!("generate_series(1, {rows}) AS s(value)"),
        false => format!("generate_series(1, {rows})"),
    }
}

fn payload(name: &str) -> &'static str {
    match name.ends_with("postgres") {
        true => "repeat(md5(random()::text), 20)",
        false => "hex(randomblob(320))",
    }
}

/// What was told to be committed, by database; kills the machine when there is
/// enough of everything.
struct Told {
    machine: Pid,
    text: String,
    last: BTreeMap<String, u64>,
    counts: BTreeMap<String, usize>,
    killed: bool,
}

impl Told {
    fn line(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let ["committed", name, number] = words[..] else {
            return;
        };
        let number = number.parse().expect("a number");
        self.last.insert(name.to_owned(), number);
        *self.counts.entry(name.to_owned()).or_default() += 1;
        let enough = |name: &String| self.counts.get(name).is_some_and(|n| *n >= COMMITS);
        if !self.killed && names().iter().all(enough) {
            self.killed = true;
            kill_process(self.machine, Signal::KILL).expect("ours");
        }
    }
}

impl Write for Told {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.text.push_str(&String::from_utf8_lossy(bytes));
        while let Some((line, rest)) = self.text.split_once('\n') {
            let (line, rest) = (line.to_owned(), rest.to_owned());
            self.text = rest;
            self.line(&line);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A Debian with both databases.
fn open_shop() -> Workshop {
    let postgres = ["postgresql-17", "postgresql-client-17", "tzdata"];
    let shop = Workshop::new(&[("postgresql", &postgres), ("sqlite", &["sqlite3"])]);
    make_clusters(&shop);
    shop
}

/// A cluster of PostgreSQL on each share, made on the host, where it takes a
/// second.
fn make_clusters(shop: &Workshop) {
    let home = shop.root().join("srv/pg");
    std::fs::create_dir(&home).expect("made");
    std::os::unix::fs::chown(&home, Some(USER), Some(USER)).expect("given");
    let mut initdb = Command::new("chroot");
    initdb.arg("--userspec=1:1").arg(shop.root());
    initdb.arg(format!("{BIN}/initdb"));
    initdb.args(["-D", "/srv/pg/data", "-U", "postgres", "-A", "trust"]);
    initdb.args(["--locale=C", "--encoding=UTF8", "--data-checksums", "-N"]);
    run(initdb.env_clear().env("PATH", "/usr/sbin:/usr/bin"));
    let settings = "listen_addresses = ''\nshared_buffers = 16MB\nmax_connections = 10\n\
         jit = off\ntimezone = 'UTC'\nlog_timezone = 'UTC'\n";
    let data = home.join("data");
    let mut file = std::fs::File::options()
        .append(true)
        .open(data.join("postgresql.conf"))
        .expect("there");
    file.write_all(settings.as_bytes()).expect("written");
    for (share, _) in SHARES {
        let folder = shop.share(share);
        run(Command::new("cp")
            .arg("-a")
            .arg(&data)
            .arg(folder.join("postgres")));
    }
}

fn run(command: &mut Command) {
    let output = command.output().expect("starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {said}");
}

/// Every database is consistent and has what was told; how many transactions
/// each has.
fn check(vm: &mut Vm, told: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let checks: String = names()
        .iter()
        .map(|name| format!("check {name}\n"))
        .collect();
    let script = format!("{}start\n{checks}", prologue());
    let output = vm.sh_within(&script, LIMIT).expect("an end");
    let mut found = BTreeMap::new();
    for name in names() {
        let line = output
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix(&*name));
        let words: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
        let ["ok", most, transactions, "0", total] = words[..] else {
            panic!("{name} is not consistent: {output:?}");
        };
        let most: u64 = most.parse().expect("a number");
        assert_eq!(transactions, most.to_string(), "{name}: a gap");
        assert_eq!(total, TOTAL.to_string(), "{name}: half a transaction");
        let told = told.get(&name).copied().unwrap_or(0);
        // One more may have been committed and not been told.
        assert!(
            (told..=told + 1).contains(&most),
            "{name}: {most}, told {told}"
        );
        found.insert(name, most);
    }
    found
}

#[test]
fn databases_keep_what_they_committed_when_their_machine_is_killed() {
    let crashes = std::env::var(CRASHES).map_or(2, |text| text.parse().expect("a number"));
    let shop = open_shop();
    let mut told = BTreeMap::new();
    for crash in 0..crashes {
        let mut vm = shop.boot(&[]);
        let mut script = prologue();
        if crash == 0 {
            script.push_str("start\n");
            for name in names() {
                if name.ends_with("wal") {
                    script.push_str(&format!(
                        "ask {name} 'PRAGMA journal_mode=WAL' >/dev/null\n"
                    ));
                }
                script.push_str(&format!(
                    "make {name} \"{}\" || exit 1\n",
                    series(&name, 10)
                ));
            }
        } else {
            println!("after crash {crash}: {:?}", check(&mut vm, &told));
        }
        for name in names() {
            let (series, payload) = (series(&name, ROWS), payload(&name));
            script.push_str(&format!("commit {name} \"{series}\" '{payload}' &\n"));
        }
        script.push_str("wait\n");
        let mut out = Told {
            machine: Pid::from_raw(vm.qemu_pid()).expect("runs"),
            text: String::new(),
            last: told.clone(),
            counts: BTreeMap::new(),
            killed: false,
        };
        let mut errors = Vec::new();
        let ended = vm.stream(&script, &mut out, &mut errors, LIMIT);
        let errors = String::from_utf8_lossy(&errors).into_owned();
        assert!(ended.is_err() && out.killed, "{ended:?}\n{errors}");
        assert!(out.counts.values().all(|count| *count >= COMMITS));
        told = out.last;
    }
    let mut vm = shop.boot(&[]);
    println!("after the last crash: {:?}", check(&mut vm, &told));
    let counted = [1, 2].map(|share| Counted::by(&vm, share));
    assert!(counted[0].window("setups") > 0 && counted[0].requests("Read") == 0);
    assert!(counted[1].window("setups") == 0 && counted[1].requests("Read") > 0);
    let end = "kill -INT $(head -qn 1 /mnt/*/postgres/postmaster.pid); sleep 3";
    vm.sh(end).expect("an end");
    vm.shutdown().expect("powers off");
    assert_eq!(vm.kernel_warnings(), Vec::<String>::new());
    assert!(Path::new(&shop.share("dax")).join("wal.db").is_file());
}
