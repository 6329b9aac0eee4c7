use daxwindow_shared::fuse::GetattrIn;
use rustix::io::Errno;

use super::*;

#[test]
fn a_pipeline_keeps_all_places_of_all_queues_in_flight() {
    let most = Arc::new(Mutex::new((0, HashSet::new())));
    let seen = Arc::clone(&most);
    let mut held: Vec<Job> = Vec::new();
    // Answers GETATTR only when five are in flight, the latest first.
    let program: Program = Box::new(move |bench: &mut Bench, jobs: Vec<Job>| {
        for job in jobs {
            match is(&job, Opcode::Getattr) {
                true => held.push(job),
                false => bench.answer(&job, &honest(&job)),
            }
        }
        let mut seen = seen.lock();
        seen.0 = seen.0.max(held.len());
        if held.len() >= 5 {
            for job in held.drain(..).rev() {
                seen.1.insert(job.queue);
                bench.answer(&job, &honest(&job));
            }
        }
    });
    let (session, _transport) = session(3, 16, LONG, program);
    let mut pipeline = session.pipeline(7, 5, 0).expect("a pipeline");
    assert_eq!((pipeline.queues(), pipeline.depth()), (2, 5));
    let getattr = GetattrIn::default();
    let mut answered = Vec::new();
    for round in 0..3u64 {
        for place in 0..5 {
            let mut order = Order::new(Opcode::Getattr, 10 * round + place as u64, &[]);
            let args = [getattr.as_bytes()];
            order.args = &args;
            order.reply_bytes = size_of::<AttrOut>();
            pipeline.submit(place, &order).expect("sent");
            let again = pipeline.submit(place, &order);
            assert!(matches!(again, Err(Error::Invalid(_))), "{again:?}");
        }
        while pipeline.in_flight() > 0 {
            let take = |place, answer: Result<Answer<'_>>| {
                let attr: AttrOut = answer.expect("good").fixed();
                answered.push((place as u64, attr.attr.ino));
            };
            assert!(pipeline.collect(take).expect("collected") > 0);
        }
    }
    assert_eq!(pipeline.collect(|_, _| ()).expect("nothing"), 0);
    answered.sort_unstable();
    let mut expected: Vec<_> = (0..5)
        .flat_map(|place| [0, 10, 20].map(|round| (place, round + place)))
        .collect();
    expected.sort_unstable();
    assert_eq!(answered, expected);
    let seen = most.lock();
    assert_eq!((seen.0, seen.1.len()), (5, 2));
}

#[test]
fn a_pipeline_moves_data_and_tells_each_place_its_error() {
    let program: Program = Box::new(|bench: &mut Bench, jobs: Vec<Job>| {
        for job in jobs {
            let unique = header(&job).unique;
            match Opcode::from_u32(header(&job).opcode) {
                Some(Opcode::Fsync) => {
                    let error = OutHeader::failure(unique, Errno::IO.raw_os_error());
                    bench.answer(&job, error.as_bytes());
                }
                _ => bench.answer(&job, &honest(&job)),
            }
        }
    });
    let (session, _transport) = session(2, 16, LONG, program);
    let mut pipeline = session.pipeline(1, 2, 4096).expect("a pipeline");
    pipeline.fill(0, 4000, &[1; 96]).expect("fits");
    assert!(pipeline.fill(0, 4001, &[1; 96]).is_err());
    let read = ReadIn {
        offset: 7,
        size: 100,
        ..ReadIn::default()
    };
    let args = [read.as_bytes()];
    let mut order = Order::new(Opcode::Read, 2, &args);
    order.room_bytes = 4097;
    assert!(matches!(pipeline.submit(0, &order), Err(Error::Invalid(_))));
    order.room_bytes = 4096;
    pipeline.submit(0, &order).expect("sent");
    pipeline
        .submit(1, &Order::new(Opcode::Fsync, 2, &[]))
        .expect("sent");
    let mut seen = Vec::new();
    while pipeline.in_flight() > 0 {
        let take = |place, answer: Result<Answer<'_>>| match answer {
            Ok(answer) => {
                let mut bytes = [0; 2];
                answer.copy_data(98, &mut bytes);
                seen.push((place, answer.data_bytes(), Some(bytes)));
            }
            Err(error) => {
                assert_eq!(error.errno(), Errno::IO);
                seen.push((place, 0, None));
            }
        };
        pipeline.collect(take).expect("collected");
    }
    seen.sort_unstable();
    assert_eq!(seen, [(0, 100, Some([7, 7])), (1, 0, None)]);
}

#[test]
fn a_pipeline_ends_in_time_and_with_the_connection() {
    let silent = |bench: &mut Bench, jobs: Vec<Job>| {
        let init = jobs.iter().filter(|job| is(job, Opcode::Init));
        init.for_each(|job| bench.answer(job, &honest(job)));
    };
    let (session, transport) = session(2, 16, SHORT, Box::new(silent));
    let mut pipeline = session.pipeline(1, 1, 0).expect("a pipeline");
    let order = Order::new(Opcode::Syncfs, 1, &[]);
    pipeline.submit(0, &order).expect("sent");
    let late = pipeline.collect(|_, _| panic!("nothing came"));
    assert!(matches!(late, Err(Error::TimedOut { .. })), "{late:?}");
    assert_eq!(pipeline.in_flight(), 1);
    crate::transport::Transport::disconnect(transport.as_ref());
    let gone = pipeline.collect(|_, _| panic!("nothing came"));
    assert!(matches!(gone, Err(Error::Disconnected)), "{gone:?}");
}

#[test]
fn a_place_of_a_broken_queue_keeps_its_buffer_out_of_use() {
    let (session, _transport) = session(2, 8, LONG, breaker());
    let mut pipeline = session.pipeline(1, 1, 4096).expect("a pipeline");
    let read = ReadIn {
        size: 100,
        ..ReadIn::default()
    };
    let args = [read.as_bytes()];
    let mut order = Order::new(Opcode::Read, 2, &args);
    order.room_bytes = 4096;
    pipeline.submit(0, &order).expect("sent");
    let broken = |_, answer: Result<Answer<'_>>| {
        let error = answer.expect_err("broken");
        assert!(matches!(error, Error::Protocol { .. }), "{error:?}");
    };
    assert_eq!(pipeline.collect(broken).expect("collected"), 1);
    let again = pipeline.submit(0, &order);
    assert!(matches!(again, Err(Error::Invalid(_))), "{again:?}");
    let stored = pipeline.fill(0, 0, &[1; 8]);
    assert!(matches!(stored, Err(Error::Invalid(_))), "{stored:?}");
}
