//! All six forms, the documented example, and what holds for all rules.

use proptest::prelude::*;

use super::*;

fn map(rules: &[&str]) -> IdMap {
    let rules: Vec<IdRule> = rules
        .iter()
        .map(|rule| {
            rule.parse()
                .unwrap_or_else(|error| panic!("{rule}: {error}"))
        })
        .collect();
    IdMap::new(&rules).unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn assert_to_host(map: &IdMap, cases: &[(u32, u32)]) {
    for (guest, host) in cases {
        assert_eq!(map.to_host(*guest), Ok(*host), "guest {guest}");
    }
}

#[track_caller]
fn assert_to_guest(map: &IdMap, cases: &[(u32, u32)]) {
    for (host, guest) in cases {
        assert_eq!(map.to_guest(*host), *guest, "host {host}");
    }
}

const SAME: [(u32, u32); 3] = [(0, 0), (1000, 1000), (u32::MAX, u32::MAX)];

#[test]
fn without_rules_ids_are_the_same() {
    let none = map(&[]);
    assert_to_host(&none, &SAME);
    assert_to_guest(&none, &SAME);
    assert!(Ids::default().is_identity());
}

#[test]
fn guest_shifts_the_guests_ids() {
    let map = map(&["guest:10:1010:5"]);
    assert_to_host(&map, &[(9, 9), (10, 1010), (14, 1014), (15, 15)]);
    assert_to_guest(&map, &[(1010, 1010), (10, 10)]);
}

#[test]
fn host_shifts_the_hosts_ids() {
    let map = map(&["host:1010:10:5"]);
    assert_to_guest(&map, &[(1009, 1009), (1010, 10), (1014, 14), (1015, 1015)]);
    assert_to_host(&map, &[(10, 10), (1010, 1010)]);
}

#[test]
fn squashes_make_many_one() {
    let guest = map(&["squash-guest:0:1001:4294967295"]);
    assert_to_host(&guest, &[(0, 1001), (7, 1001), (u32::MAX - 1, 1001)]);
    // What means nobody to the kernel is not somebody by a rule.
    assert_to_host(&guest, &[(u32::MAX, u32::MAX)]);
    assert_to_guest(&guest, &SAME);

    let host = map(&["squash-host:100:5:3"]);
    assert_to_guest(&host, &[(99, 99), (100, 5), (102, 5), (103, 103)]);
    assert_to_host(&host, &SAME);
}

#[test]
fn forbidden_ids_are_refused_one_way() {
    let map = map(&["forbid-guest:0:10"]);
    for id in [0, 9] {
        assert_eq!(map.to_host(id), Err(Errno::PERM));
    }
    assert_to_host(&map, &[(10, 10)]);
    assert_to_guest(&map, &SAME);
}

#[test]
fn map_shifts_both_ways() {
    let both = map(&["map:0:100000:65536"]);
    assert_to_host(&both, &[(0, 100_000), (65_535, 165_535), (65_536, 65_536)]);
    assert_to_guest(&both, &[(100_000, 0), (165_535, 65_535), (0, 0)]);
    let one_each = map(&["guest:0:100000:65536", "host:100000:0:65536"]);
    for id in [0, 1, 65_535, 65_536, 100_000, 165_536] {
        assert_eq!(both.to_host(id), one_each.to_host(id));
        assert_eq!(both.to_guest(id), one_each.to_guest(id));
    }
}

/// From virtiofsd's README: one user on the host, another in the guest.
#[test]
fn the_documented_example() {
    let ids = Ids {
        uid: map(&["squash-guest:0:1001:4294967295", "host:1001:1000:1"]),
        gid: map(&["squash-guest:0:100:4294967295", "host:100:1000:1"]),
        ..Ids::default()
    };
    let caller = |uid, gid| Caller { uid, gid, pid: 1 };
    for (uid, gid) in [(0, 0), (1000, 1000), (1, 50_000)] {
        let there = ids.on_host(caller(uid, gid)).expect("nothing is forbidden");
        assert_eq!((there.uid, there.gid, there.pid), (1001, 100, 1));
    }
    let attr = |uid, gid| Attr {
        uid,
        gid,
        ..Attr::default()
    };
    let seen = ids.in_guest(attr(1001, 100));
    assert_eq!((seen.uid, seen.gid), (1000, 1000));
    let seen = ids.in_guest(attr(0, 5));
    assert_eq!((seen.uid, seen.gid), (0, 5));
}

#[test]
fn any_separator_and_any_case_will_do() {
    let want: IdRule = "squash-guest:1:2:3".parse().expect("a rule");
    for text in [
        "squash-guest,1,2,3",
        "SQUASH-GUEST 1 2 3",
        "Squash-Guest/1/2/3",
    ] {
        assert_eq!(text.parse(), Ok(want), "{text}");
    }
    assert_eq!(want.to_string(), "squash-guest:1:2:3");
    let forbid: IdRule = "forbid-guest:4:5".parse().expect("a rule");
    assert_eq!(forbid.to_string(), "forbid-guest:4:5");
}

#[test]
fn what_is_wrong_is_named() {
    for (text, words) in [
        ("", "type \"\""),
        (":1:2:3", "type \"\""),
        ("squash:1:2:3", "type \"squash\""),
        ("map", "takes 3 numbers"),
        ("map:1:2", "not 2"),
        ("map:1:2:3:4", "not 4"),
        ("forbid-guest:1:2:3", "takes 2 numbers"),
        ("map:1:2,3", "\"2,3\" is no number"),
        ("map:1::3", "\"\" is no number"),
        ("map:-1:2:3", "\"-1\" is no number"),
        ("map:4294967296:2:3", "\"4294967296\" is no number"),
        ("guest:4294967295:0:1", "4294967295 and 1 on"),
        ("guest:0:4294967295:1", "4294967295 and 1 on"),
        ("host:5:4294967290:6", "4294967290 and 6 on"),
        ("squash-guest:0:4294967295:1", "4294967295 and 1 on"),
        ("forbid-guest:4294967295:4294967295", "goes past"),
    ] {
        let error = text.parse::<IdRule>().expect_err(text).to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn rules_of_one_direction_may_not_overlap() {
    let overlap = |rules: [&str; 2]| {
        let rules = rules.map(|rule| rule.parse::<IdRule>().expect("a rule"));
        IdMap::new(&rules).err().map(|error| error.to_string())
    };
    for (one, other, side) in [
        ("guest:0:1000:10", "guest:9:2000:1", "guest"),
        ("guest:9:2000:1", "squash-guest:0:5:10", "guest"),
        ("map:0:1000:10", "forbid-guest:5:1", "guest"),
        ("map:0:1000:10", "host:1009:1:1", "host"),
        ("squash-host:0:5:100", "host:50:1:1", "host"),
    ] {
        let error = overlap([one, other]).expect("they overlap");
        let want = format!("{other} is about {side} ids that {one} is about already");
        assert_eq!(error, want);
    }
    for (one, other) in [
        ("guest:0:1000:10", "guest:10:2000:10"),
        ("guest:0:1000:10", "host:0:1000:10"),
        ("guest:0:1000:10", "guest:5:1:0"),
        ("squash-guest:0:5:10", "squash-guest:10:5:10"),
    ] {
        assert_eq!(overlap([one, other]), None, "{one} {other}");
    }
}

fn rule() -> impl Strategy<Value = String> {
    let kinds = ["guest", "host", "squash-guest", "squash-host", "map"];
    let ids = || 0..200_u32;
    let rule = (
        proptest::sample::select(kinds.to_vec()),
        ids(),
        ids(),
        0..20_u32,
    );
    prop_oneof![
        9 => rule.prop_map(|(kind, from, to, count)| format!("{kind}:{from}:{to}:{count}")),
        1 => (ids(), 0..20_u32).prop_map(|(from, count)| format!("forbid-guest:{from}:{count}")),
    ]
}

proptest! {
    #[test]
    fn any_text_is_a_rule_or_an_error(text in "\\PC{0,40}") {
        let _ = text.parse::<IdRule>();
    }

    #[test]
    fn texts_like_rules_are_a_rule_or_an_error(text in "(map|host|forbid-guest)(:[0-9]{0,10}){0,4}") {
        if let Ok(rule) = text.parse::<IdRule>() {
            prop_assert_eq!(rule.to_string().parse::<IdRule>(), Ok(rule));
        }
    }

    /// Looking an id up among many rules finds what going through them one by
    /// one does.
    #[test]
    fn the_rule_that_is_about_an_id_decides(texts in proptest::collection::vec(rule(), 0..12)) {
        let mut kept: Vec<IdRule> = Vec::new();
        for text in &texts {
            let rule = text.parse().expect("a rule");
            if IdMap::new(&[&kept[..], &[rule]].concat()).is_ok() {
                kept.push(rule);
            }
        }
        let map = IdMap::new(&kept).expect("no overlap");
        let one_by_one = |id: u32, guest: bool| {
            let spans = kept.iter().map(IdRule::spans);
            let mut spans = spans.filter_map(|(g, h)| if guest { g } else { h });
            let span = spans.find(|span| (span.first..span.end).contains(&id));
            match span.map(|span| (span.becomes, span.first)) {
                None => Ok(id),
                Some((Becomes::From(base), first)) => Ok(base + (id - first)),
                Some((Becomes::One(one), _)) => Ok(one),
                Some((Becomes::Forbidden, _)) => Err(Errno::PERM),
            }
        };
        for id in 0..250 {
            prop_assert_eq!(map.to_host(id), one_by_one(id, true));
            prop_assert_eq!(Ok(map.to_guest(id)), one_by_one(id, false));
        }
    }

    /// An id that `map` is about comes back as itself.
    #[test]
    fn map_goes_there_and_back(guest in 0..u32::MAX / 2, host in 0..u32::MAX / 2, count in 1..1000_u32, at in 0..1000_u32) {
        let map = map(&[&format!("map:{guest}:{host}:{count}")]);
        let id = guest + at % count;
        let there = map.to_host(id).expect("not forbidden");
        prop_assert_eq!(map.to_guest(there), id);
    }
}

#[test]
fn where_there_is_one_id_it_creates_and_is_given_to_nobody_else() {
    let caller = Caller {
        uid: 1000,
        gid: 1001,
        pid: 1,
    };
    let sole = SoleIds {
        uid: true,
        gid: true,
    };
    let ids = Ids {
        sole,
        ..Ids::default()
    };
    let own = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let there = ids.on_host(caller).expect("the one there is");
    assert_eq!((there.uid, there.gid), own);
    assert_eq!(
        ids.uid.to_host(1000),
        Ok(1000),
        "to be refused by the kernel"
    );
    assert!(ids.is_identity() && !ids.translates(caller));
    let nobody = Caller {
        uid: u32::MAX,
        ..caller
    };
    assert_eq!(ids.on_host(nobody).map(|c| c.uid), Ok(u32::MAX));
}
