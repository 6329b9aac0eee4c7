//! libvirt itself, in a container: `host` has its daemons, `domain` what is
//! given to them, the others what must come of it.

mod discovery;
mod domain;
mod host;
mod hot_plug;
mod life;
mod options;
mod session;
