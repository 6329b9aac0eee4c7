//! Which program libvirt takes for a domain that names none.

use std::fs;

use super::domain::Domain;
use super::host::{DISCOVERY, Host};

/// What serves a domain's share, by the first word of its command line.
fn served_by(host: &Host, domain: &Domain) -> String {
    let virsh = host.system();
    virsh.start(domain);
    let serving = host.serving();
    virsh.ok(&["destroy", domain.name]);
    host.wait_until_none_serves();
    let program = serving[0].words[0].clone();
    assert!(serving.iter().all(|inmate| inmate.words[0] == program));
    program
}

#[test]
fn virtiofsd_keeps_domains_that_name_no_program_where_both_are_installed() {
    let host = Host::start();
    let domain = Domain::new("discovery", "/srv").without_binary();
    host.system().define(&domain);
    assert_eq!(served_by(&host, &domain), "/usr/libexec/virtiofsd");
    let other = format!("{DISCOVERY}/50-virtiofsd.json");
    fs::remove_file(host.path(&other)).expect("installed");
    assert_eq!(served_by(&host, &domain), "/usr/bin/daxwindowd");
}
