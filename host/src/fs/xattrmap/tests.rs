//! Every example of virtiofsd's page on the mapping (doc/xattr-mapping.md of
//! the crate virtiofsd 1.14.0), and what holds for all rules.

use std::ffi::CString;

use proptest::prelude::*;

use super::*;

/// Lets through what no rule before it decided.
const REST: &str = ":ok:all:::";

fn map(rules: &str) -> XattrMap {
    rules
        .parse()
        .unwrap_or_else(|error| panic!("{rules:?}: {error}"))
}

fn refused(rules: &str) -> (Option<usize>, XattrMapErrorKind) {
    let error = rules.parse::<XattrMap>().expect_err(rules);
    (error.rule, error.kind)
}

/// The host's name, or what the guest is told.
fn host(map: &XattrMap, name: &str) -> String {
    let name = CString::new(name).expect("no NUL");
    match map.to_host(&name) {
        Mapped::Name(name) => name.to_str().expect("UTF-8").to_owned(),
        Mapped::Denied => "denied".to_owned(),
        Mapped::Unsupported => "unsupported".to_owned(),
    }
}

/// The guest's name, or "hidden".
fn guest<'n>(map: &XattrMap, name: &'n str) -> &'n str {
    let seen = map.to_guest(name.as_bytes());
    seen.map_or("hidden", |name| std::str::from_utf8(name).expect("UTF-8"))
}

/// Asserts (name used by the guest, host's name) and (name listed by the
/// host, guest's name).
#[track_caller]
fn assert_maps(map: &XattrMap, to_host: &[(&str, &str)], to_guest: &[(&str, &str)]) {
    for (name, want) in to_host {
        assert_eq!(host(map, name), *want, "the guest uses {name}");
    }
    for (name, want) in to_guest {
        assert_eq!(guest(map, name), *want, "the host lists {name}");
    }
}

#[test]
fn rule_examples() {
    // Each row of the page's table, before a rule that lets the rest through.
    let with_rest = |rule: &str| map(&format!("{rule}{REST}"));

    let client = with_rest(":prefix:client:trusted.:user.virtiofs.:");
    let to_host = [
        ("trusted.a", "user.virtiofs.trusted.a"),
        ("user.a", "user.a"),
    ];
    let stored = "user.virtiofs.trusted.a";
    assert_maps(&client, &to_host, &[(stored, stored)]);

    let server = with_rest(":prefix:server::user.virtiofs.:");
    let to_guest = [(stored, "trusted.a"), ("user.a", "user.a")];
    assert_maps(&server, &[("trusted.a", "trusted.a")], &to_guest);

    let all = with_rest(":prefix:all:trusted.:user.virtiofs.:");
    assert_maps(&all, &to_host, &to_guest);

    let hide = ":bad:all:::";
    let ok_client = map(&format!(":ok:client:user.::{hide}"));
    let to_host = [("user.a", "user.a"), ("trusted.a", "denied")];
    assert_maps(&ok_client, &to_host, &[("user.a", "hidden")]);

    let ok_server = map(&format!(":ok:server::security.:{hide}"));
    let to_guest = [("security.a", "security.a"), ("user.a", "hidden")];
    assert_maps(&ok_server, &[("security.a", "denied")], &to_guest);

    let everything = map(REST);
    for name in ["user.a", "trusted.b", "security.c", "system.d", "other"] {
        assert_maps(&everything, &[(name, name)], &[(name, name)]);
    }

    let bad_server = with_rest(":bad:server::security.:");
    let to_guest = [("security.a", "hidden"), ("user.a", "user.a")];
    assert_maps(&bad_server, &[("security.a", "security.a")], &to_guest);
}

#[test]
fn example_1_everything_below_a_prefix() {
    let rules = map(":prefix:all::user.virtiofs.::bad:all:::");
    assert_maps(
        &rules,
        &[
            ("trusted.a", "user.virtiofs.trusted.a"),
            ("user.virtiofs.a", "user.virtiofs.user.virtiofs.a"),
        ],
        &[
            ("user.virtiofs.trusted.a", "trusted.a"),
            ("user.a", "hidden"),
            ("security.selinux", "hidden"),
        ],
    );
    assert_eq!(rules, map(":map::user.virtiofs.:"), "what map stands for");
}

#[test]
fn example_2_trusted_below_a_prefix_and_the_rest_through() {
    let rules = map("/prefix/all/trusted./user.virtiofs./
                     /bad/server//trusted./
                     /bad/client/user.virtiofs.//
                     /ok/all///");
    let names = [
        ("trusted.a", "user.virtiofs.trusted.a"),
        ("user.virtiofs.trusted.a", "denied"),
        ("user.virtiofs.", "denied"),
        ("user.a", "user.a"),
    ];
    let lists = [
        ("user.virtiofs.trusted.a", "trusted.a"),
        ("trusted.a", "hidden"),
        ("user.a", "user.a"),
    ];
    let short = map("/map/trusted./user.virtiofs./");
    for rules in [rules, short] {
        assert_maps(&rules, &names, &lists);
    }
}

#[test]
fn example_3_security_hidden() {
    let rules = map("/bad/all/security./security./
                     /ok/all///");
    let names = [("security.selinux", "denied"), ("user.a", "user.a")];
    let lists = [("security.selinux", "hidden"), ("user.a", "user.a")];
    assert_maps(&rules, &names, &lists);
}

/// From virtiofsd's README, on SELinux.
#[test]
fn a_guests_label_has_a_place_of_its_own() {
    let rules = map(":map:security.selinux:trusted.virtiofs.:");
    let stored = "trusted.virtiofs.security.selinux";
    let names = [
        ("security.selinux", stored),
        (stored, "denied"),
        ("security.capability", "security.capability"),
    ];
    let lists = [
        (stored, "security.selinux"),
        ("security.selinux", "hidden"),
        ("user.a", "user.a"),
    ];
    assert_maps(&rules, &names, &lists);
}

#[test]
fn unsupported_is_told_from_bad() {
    let rules = map(":unsupported:all:system.:system.::bad:all:::");
    assert_maps(
        &rules,
        &[("system.a", "unsupported"), ("user.a", "denied")],
        &[("system.a", "hidden"), ("user.a", "hidden")],
    );
}

#[test]
fn each_rule_has_its_own_separator_and_white_space_is_free() {
    let rules = map(" \n:bad:client:a.::\t/bad/server//b./|ok|all|||  ");
    assert_maps(
        &rules,
        &[("a.x", "denied"), ("b.x", "b.x")],
        &[("b.x", "hidden")],
    );
    // Separators may be any character, fields what does not contain it.
    let rules = map("éprefixéallétrusted.éuser.:/é:bad:all:::");
    assert_maps(&rules, &[("trusted.a", "user.:/trusted.a")], &[]);
}

#[test]
fn what_is_wrong_is_named_with_the_rule() {
    use XattrMapErrorKind as Wrong;
    let incomplete = |field, separator| Wrong::Incomplete { field, separator };
    for (rules, rule, kind) in [
        ("", None, Wrong::NoRules),
        (" \t\n", None, Wrong::NoRules),
        (":", Some(1), incomplete("type", ':')),
        (":prefix", Some(1), incomplete("type", ':')),
        (":prefix:client:hi", Some(1), incomplete("key", ':')),
        (":ok:all::", Some(1), incomplete("prepend", ':')),
        (
            ":ok:all::: /bad:all/",
            Some(2),
            Wrong::Type("bad:all".into()),
        ),
        ("ok:all:::", Some(1), incomplete("type", 'o')),
        (":best:all:::", Some(1), Wrong::Type("best".into())),
        ("/prefix/both///", Some(1), Wrong::Scope("both".into())),
        (":map:a:b::map:c:d:", Some(1), Wrong::MapNotLast),
        (":map:a:b: :ok:all:::", Some(1), Wrong::MapNotLast),
        (":bad:all:a:b::map:c", Some(2), incomplete("key", ':')),
        (":ok:all:a\0:::", Some(1), Wrong::Nul("a\0".into())),
        (":prefix:client:trusted.:user.:", None, Wrong::Unterminated),
        (":prefix:client::user.virtiofs.:", None, Wrong::Unterminated),
        (":ok:server:::", None, Wrong::Unterminated),
    ] {
        assert_eq!(refused(rules), (rule, kind), "{rules:?}");
    }
    let text = ":ok:all::: :bad:everywhere:::".parse::<XattrMap>();
    let text = text.expect_err("no such scope").to_string();
    assert_eq!(
        text,
        "rule 2: scope \"everywhere\" is none of client, server and all"
    );
}

#[test]
fn denied_names_read_as_absent_and_cannot_be_changed() {
    let rules = ":bad:all:a.:a.::unsupported:all:b.:b.::ok:all:::";
    let names = XattrNames::new(Some(map(rules)));
    let to_host = |name, access| names.to_host(name, access, false);
    assert_eq!(to_host(c"a.x", Access::Read), Err(Errno::NODATA));
    assert_eq!(to_host(c"a.x", Access::Change), Err(Errno::PERM));
    assert_eq!(to_host(c"b.x", Access::Read), Err(Errno::NOTSUP));
    assert_eq!(to_host(c"b.x", Access::Change), Err(Errno::NOTSUP));
    assert_eq!(to_host(c"c.x", Access::Change), Ok(Cow::Borrowed(c"c.x")));
    assert_eq!(to_host(c"", Access::Read), Err(Errno::RANGE));
    let seen = names.list_to_guest(b"a.x\0c.x\0b.x\0c.y\0", false);
    assert_eq!(seen, b"c.x\0c.y\0");
}

#[test]
fn acls_are_there_only_where_they_hold() {
    let list = b"system.posix_acl_access\0user.a\0system.posix_acl_default\0system.nfs4_acl\0";
    for names in [XattrNames::new(None), XattrNames::new(Some(map(REST)))] {
        for acl in ACL_NAMES {
            for access in [Access::Read, Access::Change] {
                assert_eq!(names.to_host(acl, access, false), Err(Errno::NOTSUP));
                assert_eq!(names.to_host(acl, access, true), Ok(Cow::Borrowed(acl)));
            }
        }
        assert_eq!(names.list_to_guest(list, true), list);
        assert_eq!(
            names.list_to_guest(list, false),
            b"user.a\0system.nfs4_acl\0"
        );
    }
    // An ACL kept from before under a mapped name does not come up as one.
    let names = XattrNames::new(Some(map(":map::user.virtiofs.:")));
    let stored = b"user.virtiofs.system.posix_acl_access\0user.virtiofs.user.a\0";
    assert_eq!(names.list_to_guest(stored, false), b"user.a\0");
}

#[test]
fn which_maps_leave_acls_to_the_host() {
    for (rules, passes) in [
        (":ok:all:::", true),
        (":map::user.virtiofs.:", false),
        (":map:trusted.:user.virtiofs.:", true),
        (":bad:all:system.:system.::ok:all:::", false),
        (":bad:server::system.::ok:all:::", false),
        (
            ":ok:all:system.posix_acl_:system.posix_acl_: :map::user.v.:",
            true,
        ),
    ] {
        assert_eq!(map(rules).passes_acls(), passes, "{rules}");
    }
}

#[test]
fn a_capability_kept_elsewhere_is_known() {
    let place = |rules: Option<&str>| {
        let names = XattrNames::new(rules.map(map));
        names.mapped_capability().map(CStr::to_owned)
    };
    assert_eq!(place(None), None);
    assert_eq!(place(Some(REST)), None);
    assert_eq!(place(Some(":bad:all:security.:security.::ok:all:::")), None);
    let mapped = Some(c"user.v.security.capability".to_owned());
    assert_eq!(place(Some(":map::user.v.:")), mapped);
    assert_eq!(place(Some(":map:security.:user.v.:")), mapped);
}

fn name() -> impl Strategy<Value = String> {
    "(user|trusted|security|system|os2)\\.[a-z.]{0,12}"
}

proptest! {
    #[test]
    fn any_text_is_a_map_or_an_error(text in "\\PC{0,80}") {
        let _ = text.parse::<XattrMap>();
    }

    #[test]
    fn texts_like_rules_are_a_map_or_an_error(text in "([:/ ](map|ok|bad|prefix|all|client|server|unsupported|a)?){0,24}") {
        if let Ok(map) = text.parse::<XattrMap>() {
            prop_assert!(map.is_complete(), "{}", text);
        }
    }

    /// What the guest stores under a name it finds under that name, and never
    /// under another's.
    #[test]
    fn map_goes_there_and_back(key in "(trusted\\.|user\\.|)", prepend in "user\\.[a-z]{1,5}\\.", name in name()) {
        let rules = map(&format!(":map:{key}:{prepend}:"));
        let c_name = CString::new(name.clone()).expect("no NUL");
        match rules.to_host(&c_name) {
            Mapped::Name(stored) => {
                prop_assert_eq!(rules.to_guest(stored.to_bytes()), Some(name.as_bytes()));
                if name.starts_with(&key) {
                    prop_assert!(stored.to_bytes().starts_with(prepend.as_bytes()));
                }
            }
            Mapped::Denied => prop_assert!(name.starts_with(&prepend)),
            Mapped::Unsupported => prop_assert!(false, "{}", name),
        }
    }

    /// No list grows, and none shows what is hidden.
    #[test]
    fn lists_are_filtered(names in proptest::collection::vec(name(), 0..8), hidden in "(user|trusted)\\.") {
        let rules = XattrNames::new(Some(map(&format!(":bad:server::{hidden}:{REST}"))));
        let list: Vec<u8> = names.iter().flat_map(|name| [name.as_bytes(), b"\0"].concat()).collect();
        let seen = rules.list_to_guest(&list, true);
        let want: Vec<u8> = names
            .iter()
            .filter(|name| !name.starts_with(&hidden))
            .flat_map(|name| [name.as_bytes(), b"\0"].concat())
            .collect();
        prop_assert_eq!(seen, want);
    }
}
