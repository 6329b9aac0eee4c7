//! What the program does with an order.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};

use super::readers::Readers;
use super::{ANSWER, Place, ROLE, Things, calls, devices, passing, signals};

/// Runs as a program of its own; see [`Vmm`](super::Vmm).
#[test]
fn vmm() {
    if std::env::var(ROLE).is_err() {
        return assert!(std::env::var(ROLE).is_err());
    }
    let mut things = Things::default();
    // An order may read a line itself.
    let next = || {
        let mut order = String::new();
        let read = io::stdin().read_line(&mut order).expect("text");
        (read != 0).then(|| order.trim_end().to_owned())
    };
    for order in std::iter::from_fn(next) {
        let words: Vec<&str> = order.split(' ').collect();
        let answer = things.obey(&words).unwrap_or_else(|error| {
            let errno = error.raw_os_error().unwrap_or_default();
            format!("errno {errno}")
        });
        say(&answer);
    }
    // Without a word from the harness, which may have no end.
    std::process::exit(0);
}

/// As an answer.
pub(super) fn say(text: &str) {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{ANSWER}{text}").expect("somebody hears");
    stdout.flush().expect("somebody hears");
}

fn number(word: &str) -> usize {
    word.parse().expect("a number")
}

const OK: &str = "ok";

impl Things {
    fn obey(&mut self, words: &[&str]) -> io::Result<String> {
        match *words {
            ["connect-abstract", at, name] => {
                let address = SocketAddr::from_abstract_name(at)?;
                let socket = UnixStream::connect_addr(&address)?;
                self.sockets.insert(name.into(), socket);
            }
            ["connect-datagram", path] => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(path)?;
                let is_unnamed = socket.local_addr()?.is_unnamed();
                return Ok(if is_unnamed { "unnamed" } else { "named" }.into());
            }
            ["connect-bound", own, path, name] => {
                let socket = calls::bound(own)?;
                calls::connect(&socket, path)?;
                self.sockets.insert(name.into(), socket);
            }
            ["connect-twice", path, name] => {
                let socket = calls::unbound()?;
                let first = calls::connect(&socket, path).expect_err("nobody there");
                say(&format!(
                    "errno {}",
                    first.raw_os_error().unwrap_or_default()
                ));
                io::stdin().read_line(&mut String::new())?;
                calls::connect(&socket, path)?;
                self.sockets.insert(name.into(), socket);
            }
            ["pair", name] => {
                let (one, other) = UnixStream::pair()?;
                self.sockets.insert(name.into(), one);
                self.sockets.insert(format!("{name}-other"), other);
            }
            ["send", name, text] => {
                calls::send(&self.sockets[name], text.as_bytes(), None)?;
            }
            ["pass-through"] => passing::pass_through(self)?,
            ["connect", path, name] => {
                let socket = UnixStream::connect(path)?;
                self.sockets.insert(name.into(), socket);
            }
            ["close", name] => drop(self.sockets.remove(name)),
            ["features", name] => return self.features(name),
            ["ask-features", name] => self.ask_features(name)?,
            ["answer", name] => return self.answer(name, 0),
            ["answer-now", name] => return self.answer(name, libc::MSG_DONTWAIT),
            ["memfd", name] => return self.memfd(name),
            ["map", name, bytes] => return self.map(name, number(bytes)),
            ["unmap", name] => {
                let Place { address, bytes } = self.windows[name];
                calls::unmap(address, bytes + calls::PAGE)?;
            }
            ["map-over", name] => {
                let Place { address, bytes } = self.windows[name];
                calls::map_over(address, bytes)?;
            }
            ["load", name, at] => return Ok(calls::load(self.address(name, at)).to_string()),
            ["store", name, at, value] => {
                calls::store(self.address(name, at), number(value) as u8);
            }
            ["mapping", name, at] => return mapping(self.address(name, at)),
            ["churn", name, rounds] => return self.churn(name, number(rounds)),
            ["readers", name, count] => {
                let readers = Readers::start(self.windows[name], number(count));
                self.readers = Some(readers);
            }
            ["stop"] => {
                let wrong = self.readers.take().map_or(0, Readers::stop);
                return Ok(wrong.to_string());
            }
            ["handle-sigbus"] => signals::handle()?,
            ["default-sigbus"] => signals::handle_by_default()?,
            ["installed"] => return signals::installed(),
            ["fault-elsewhere"] => return Ok(signals::fault_elsewhere()?.to_string()),
            // SAFETY: no precondition.
            ["raise-sigbus"] => drop(unsafe { libc::raise(libc::SIGBUS) }),
            ["block-all", by] => return signals::block_all(by),
            ["send-memfd", over, of] => {
                let fd = self.memfds[of].as_raw_fd();
                calls::send(&self.sockets[over], &[0; 12], Some(fd))?;
            }
            ["ioctl", request] => return devices::plain(request),
            ["pin", way, name, at, len] => {
                return devices::pin(way, self.address(name, at), number(len));
            }
            ["pin-elsewhere", way] => return devices::pin(way, calls::PAGE, calls::PAGE),
            ["pin-memfd", name] => return devices::pin_file(&self.memfds[name], calls::PAGE),
            ["run", name, at, processors] => {
                return devices::run(self.address(name, at), number(processors));
            }
            ["run-failing-once", name, at] => {
                return devices::run(self.address(name, at) | devices::FAILS_ONCE, 1);
            }
            ["threads"] => return threads(),
            _ => panic!("{words:?}"),
        }
        Ok(OK.into())
    }

    fn address(&self, window: &str, at: &str) -> usize {
        self.windows[window].address + number(at)
    }

    /// Asks as the first thing that a front end says.
    fn features(&mut self, name: &str) -> io::Result<String> {
        self.ask_features(name)?;
        self.answer(name, 0)
    }

    fn ask_features(&self, name: &str) -> io::Result<()> {
        let header = [1u32, 1, 0].map(u32::to_ne_bytes).concat();
        calls::send(&self.sockets[name], &header, None).map(drop)
    }

    /// The number in a reply.
    fn answer(&mut self, name: &str, flags: i32) -> io::Result<String> {
        let mut bytes = [0; 20];
        let mut filled = 0;
        while filled < bytes.len() {
            let rest = &mut bytes[filled..];
            match calls::receive(&self.sockets[name], rest, flags)? {
                (0, _) => return Ok("end".into()),
                (received, _) => filled += received,
            }
        }
        let number = bytes[12..].try_into().expect("8 bytes");
        Ok(u64::from_ne_bytes(number).to_string())
    }

    /// Receives a memfd.
    fn memfd(&mut self, name: &str) -> io::Result<String> {
        let (_, fd) = calls::receive(&self.sockets[name], &mut [0; 1], 0)?;
        self.memfds.insert(name.into(), fd.expect("a descriptor"));
        Ok(OK.into())
    }

    fn map(&mut self, name: &str, bytes: usize) -> io::Result<String> {
        let address = calls::map_as_qemu(self.memfds[name].as_fd(), bytes)?;
        self.windows.insert(name.into(), Place { address, bytes });
        Ok(address.to_string())
    }
}

/// Protection, and the file's inode.
fn mapping(address: usize) -> io::Result<String> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let holds = |line: &&str| {
        let (range, _) = line.split_once(' ').expect("a range");
        let (start, end) = range.split_once('-').expect("a range");
        let [start, end] = [start, end].map(|text| usize::from_str_radix(text, 16).expect("hex"));
        (start..end).contains(&address)
    };
    let line = maps.lines().find(holds);
    let words: Vec<&str> = line.unwrap_or("- - - - -").split_whitespace().collect();
    Ok(format!("{} {}", words[1], words[4]))
}

/// Names of this program's threads.
fn threads() -> io::Result<String> {
    let mut names = Vec::new();
    for thread in std::fs::read_dir("/proc/self/task")? {
        let name = std::fs::read_to_string(thread?.path().join("comm"));
        names.push(name.unwrap_or_default().trim().to_owned());
    }
    Ok(names.join(" "))
}
