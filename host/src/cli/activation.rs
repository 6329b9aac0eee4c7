//! Flags about who may connect, and the sockets that a service manager passes.

use std::os::fd::RawFd;
use std::str::FromStr;

use clap::Args;
use rustix::fs::Gid;

/// See `--help`.
#[derive(Clone, Debug, Args)]
pub struct ActivationFlags {
    /// Group whose members may connect to the socket besides its owner
    #[arg(long, value_name = "GROUP", conflicts_with_all = ["fd", "print_capabilities"])]
    pub socket_group: Option<Group>,
}

/// A group of this system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group(pub Gid);

impl FromStr for Group {
    type Err = String;

    /// By name.
    fn from_str(name: &str) -> Result<Group, String> {
        match nix::unistd::Group::from_name(name) {
            Ok(Some(group)) => Ok(Group(Gid::from_raw(group.gid.as_raw()))),
            Ok(None) => Err("no such group".to_owned()),
            Err(error) => Err(format!("cannot look the group up: {error}")),
        }
    }
}

impl ActivationFlags {
    /// Returns the sockets that the service manager has passed (`LISTEN_PID`,
    /// `LISTEN_FDS`). To be called before any fork, since what is passed is
    /// for one process.
    ///
    /// # Errors
    ///
    /// What is wrong with what was passed.
    pub(super) fn sockets(&self) -> Result<Vec<RawFd>, String> {
        let fds = sd_notify::listen_fds();
        let fds = fds.map_err(|error| format!("LISTEN_FDS, LISTEN_PID: {error}"))?;
        let fds: Vec<RawFd> = fds.collect();
        if !fds.is_empty() && self.socket_group.is_some() {
            return Err(
                "--socket-group: the socket was passed; its group is for who made it \
                 (SocketGroup= in a socket unit)"
                    .to_owned(),
            );
        }
        Ok(fds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_have_names_of_this_system() {
        assert_eq!("root".parse(), Ok(Group(Gid::ROOT)));
        let error = "no-such-group".parse::<Group>().expect_err("unknown");
        assert_eq!(error, "no such group");
        assert!("".parse::<Group>().is_err());
    }
}
