//! Reads a file of a share through the window: `first_view SOCKET FILE`.
//!
//! Start a daemon first:
//! `daxwindowd --socket-path /tmp/fs.sock --shared-dir /usr/lib --dax always --readonly`

use daxwindow_guest::{Access, Guest, SessionOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(socket), Some(path)) = (arguments.next(), arguments.next()) else {
        return Err("usage: first_view SOCKET FILE".into());
    };
    // README begins
    let guest = Guest::connect(SessionOptions::new(socket))?;
    let file = guest.open(&path, Access::Read)?;
    let len = file.metadata()?.len();

    let mut first = [0; 16];
    let n = file.read_at(&mut first, 0)?; // a copy out of the host's page cache

    let view = file.map(0, len, Access::Read)?; // address space; faults map it in
    let mut last = [0; 1];
    view.read(len.saturating_sub(1) as usize, &mut last)?; // or loads from view.as_ptr()
    println!("{n} bytes at the start: {first:?}; the last byte: {last:?}");
    // README ends
    println!(
        "{} mappings, {} faults",
        guest.stats().setups,
        guest.stats().faults
    );
    Ok(())
}
