//! Files of sockets: replaced, refused, removed.

use super::*;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

const FLAG: &str = "--socket-path";

#[test]
fn stale_is_replaced_live_is_refused_and_files_are_kept() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("s");
    let first = Socket::bind(FLAG, &path).expect("free");
    let error = Socket::bind(FLAG, &path).expect_err("in use");
    assert!(matches!(error, SocketError::InUse { .. }), "{error}");
    drop(first);
    assert!(!path.exists(), "the file goes with the socket");

    drop(UnixListener::bind(&path).expect("bind"));
    assert!(path.exists(), "a stale file");
    let again = Socket::bind(FLAG, &path).expect("stale is replaced");
    let mode = std::fs::metadata(&path).expect("exists").mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");

    // Somebody else's file in our place stays.
    std::fs::remove_file(&path).expect("remove");
    std::fs::write(&path, "precious").expect("write");
    drop(again);
    let error = Socket::bind(FLAG, &path).expect_err("not a socket");
    assert!(matches!(error, SocketError::NotASocket { .. }), "{error}");
    assert_eq!(std::fs::read(&path).expect("still there"), b"precious");
}

#[test]
fn a_socket_that_was_given_goes_with_its_file_and_others_are_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("s");
    let home = || open_directory_of(&path).expect("there");
    let bound = UnixListener::bind(&path).expect("bound");
    let given = Socket::given(bound.into(), home(), path.clone()).expect("listens");
    assert_eq!(given.path(), path);
    let pid_file = dir.path().join("s.pid");
    let written = std::fs::read_to_string(&pid_file).expect("there");
    assert_eq!(written, format!("{}\n", std::process::id()));
    drop(given);
    assert!(!path.exists() && !pid_file.exists());

    let (one, _other) = std::os::unix::net::UnixStream::pair().expect("pair");
    let refused = Socket::given(one.into(), home(), path.clone());
    let error = refused.expect_err("does not listen");
    assert!(matches!(error, SocketError::Given(Errno::INVAL)), "{error}");
    assert!(!pid_file.exists());
    let file = std::fs::File::create(&path).expect("created");
    let refused = Socket::given(file.into(), home(), path.clone());
    assert!(refused.is_err() && path.exists());
}

/// Where others may write the directory, they may put anything in the place of
/// the socket.
#[test]
fn a_group_is_let_into_the_socket_and_into_nothing_that_has_its_name() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let [path, precious, aside] = ["s", "precious", "aside"].map(|name| dir.path().join(name));
    let of = |path: &Path| {
        let meta = std::fs::metadata(path).expect("there");
        (meta.mode() & 0o777, meta.gid())
    };
    let group = Gid::from_raw(4711);
    let socket = Socket::bind(FLAG, &path).expect("free");
    socket.let_in(group).expect("its own");
    assert_eq!(of(&path), (0o770, 4711));
    drop(socket);

    let other = UnixListener::bind(&precious).expect("bound");
    std::fs::set_permissions(&precious, PermissionsExt::from_mode(0o600)).expect("set");
    let before = of(&precious);
    let replacements: [&dyn Fn(); 3] = [
        &|| std::os::unix::fs::symlink(&precious, &path).expect("a link"),
        &|| std::fs::hard_link(&precious, &path).expect("another name"),
        &|| drop(UnixListener::bind(&path).expect("another socket")),
    ];
    for replace in replacements {
        let socket = Socket::bind(FLAG, &path).expect("free");
        std::fs::rename(&path, &aside).expect("put aside");
        replace();
        let error = socket.let_in(group).expect_err("not the socket");
        assert!(error.to_string().contains("--socket-group"), "{error}");
        assert_eq!(of(&precious), before);
        drop(socket);
        std::fs::remove_file(&path).expect("it is left alone");
    }
    drop(other);
}

#[test]
fn who_has_the_socket_is_named_before_it_listens() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("s");
    let first = Socket::bind_with_pid(FLAG, &path).expect("free");
    let own = format!("process id {}", std::process::id());
    let refused = |socket: Result<Socket, SocketError>| {
        let error = socket.expect_err("in use");
        assert!(error.to_string().contains(&own), "{error}");
    };
    refused(Socket::bind_with_pid(FLAG, &path));
    // Not yet, or no more.
    std::fs::remove_file(&path).expect("removed");
    refused(Socket::bind_with_pid(FLAG, &path));
    let bound = UnixListener::bind(&path).expect("bound");
    let home = open_directory_of(&path).expect("there");
    refused(Socket::given(bound.into(), home, path.clone()));
    drop(first);
    assert!(!dir.path().join("s.pid").exists());
    assert!(path.exists(), "not the one that it made");
    drop(Socket::bind_with_pid(FLAG, &path).expect("stale"));
    assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 0);
    // Without: as who binds it for another.
    let _without = Socket::bind(FLAG, &path).expect("free");
    assert!(!dir.path().join("s.pid").exists());
}

#[test]
fn errors_name_flag_path_and_cause() {
    let long = PathBuf::from(format!("/tmp/{}", "x".repeat(200)));
    let error = Socket::bind(FLAG, &long).expect_err("too long").to_string();
    assert!(
        error.contains("--socket-path") && error.contains("205"),
        "{error}"
    );
    let error = Socket::bind(FLAG, Path::new("/nonexistent-directory/s"))
        .expect_err("no directory")
        .to_string();
    assert!(error.contains("/nonexistent-directory/s"), "{error}");
}
