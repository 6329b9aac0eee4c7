//! `daxwindowd ctl`: what an operator may tell a daemon that runs.

use std::path::PathBuf;

use clap::{Args, Subcommand};

pub mod client;

use super::parse_tag;
use super::size::{Bytes, parse_window};
use crate::dax::DaxMode;
use crate::shares::ShareName;

/// What to do in place of serving.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Adds shares to a daemon that runs with --socket-dir, removes and lists
    /// them
    Ctl(Ctl),
}

/// See `--help`.
#[derive(Clone, Debug, Args)]
pub struct Ctl {
    /// The --socket-dir of the daemon
    #[arg(long, value_name = "DIR")]
    pub socket_dir: PathBuf,

    /// What to tell it.
    #[command(subcommand)]
    pub order: Order,
}

/// What a daemon can be told.
#[derive(Clone, Debug, Subcommand)]
pub enum Order {
    /// Adds a share; its socket is NAME.sock in the directory of sockets
    Add(AddFlags),
    /// Removes a share and its socket; refused while a guest is connected
    Remove(RemoveFlags),
    /// Lists the shares, one a line: name, guest connected or not, socket,
    /// access, directory
    List {
        /// A JSON array
        #[arg(long)]
        json: bool,
    },
}

/// See `--help`.
#[derive(Clone, Debug, Args)]
pub struct AddFlags {
    /// Name of the share: letters, digits, `-`, `_` and `.`, at most 64
    #[arg(long, value_name = "NAME")]
    pub name: ShareName,

    /// Directory to share
    #[arg(long, value_name = "DIR")]
    pub shared_dir: PathBuf,

    /// Name by which the guest mounts the share; the daemon's --tag if not
    /// given
    #[arg(long, value_parser = parse_tag)]
    pub tag: Option<String>,

    /// Refuse everything that would change the directory; so does a daemon
    /// that was started with --readonly
    #[arg(long)]
    pub readonly: bool,

    /// Which files the guest may access through the window; as the daemon was
    /// told if not given
    #[arg(long, value_name = "MODE")]
    pub dax: Option<DaxMode>,

    /// Size of the DAX window, as the daemon's flag has it
    #[arg(long, value_name = "SIZE", value_parser = parse_window)]
    pub dax_window: Option<Bytes>,
}

/// See `--help`.
#[derive(Clone, Debug, Args)]
pub struct RemoveFlags {
    /// Name of the share
    #[arg(long, value_name = "NAME")]
    pub name: ShareName,

    /// Disconnect a guest that uses it
    #[arg(long)]
    pub force: bool,
}
