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
    /// Directory that the daemon has as its --socket-dir
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
    /// Removes a share and its socket; while a guest is connected, only with
    /// --force
    Remove(RemoveFlags),
    /// Lists the shares, one a line: name, guest connected or not, socket,
    /// access, directory
    List {
        /// Print a JSON array
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

    /// Refuse every request that would change the directory; a daemon with
    /// --readonly does so for all shares
    #[arg(long)]
    pub readonly: bool,

    /// Which files the guest may access through the window; the daemon's --dax
    /// if not given
    #[arg(long, value_name = "MODE")]
    pub dax: Option<DaxMode>,

    /// Size of the DAX window, a multiple of 2M, with suffix K, M or G; the
    /// daemon's --dax-window if not given
    #[arg(long, value_name = "SIZE", value_parser = parse_window)]
    pub dax_window: Option<Bytes>,
}

/// See `--help`.
#[derive(Clone, Debug, Args)]
pub struct RemoveFlags {
    /// Name of the share
    #[arg(long, value_name = "NAME")]
    pub name: ShareName,

    /// Disconnect a guest that uses the share
    #[arg(long)]
    pub force: bool,
}
