//! What the trial at INIT finds out.

use super::*;

#[test]
fn the_trial_tells_the_kinds_apart() {
    let (plain, _) = dax(Kind::Plain, 4, DaxOptions::default());
    let can = plain.capabilities().expect("usable");
    assert!(can.past_eof && can.readonly_fd && can.replace && can.partial_unmap);
    assert!(can.is_byte_granular() && !can.needs_fence());
    let (exact, _) = dax(Kind::Exact, 4, DaxOptions::default());
    let can = exact.capabilities().expect("usable");
    assert!(!can.past_eof && !can.readonly_fd && !can.replace && !can.partial_unmap);
    assert!(!can.is_byte_granular() && can.needs_fence());
}

#[test]
fn a_front_end_without_real_answers_gets_no_dax() {
    struct Yes;
    impl FrontEnd for Yes {
        fn request(&self, _: &ShmemRequest<'_>) -> Result<(), FrontEndError> {
            Ok(())
        }
    }
    let dax = Dax::new(DaxOptions {
        window_bytes: RANGE,
        ..Default::default()
    });
    dax.announce_window();
    dax.set_front_end(Some(Arc::new(Yes)));
    assert_eq!(dax.init(), DaxOffer::default());
    let files = Files::new(1, RANGE);
    assert_eq!(
        dax.setup(&files, 0, &setup_in(0, 0, false)),
        Err(Errno::OPNOTSUPP)
    );
}
