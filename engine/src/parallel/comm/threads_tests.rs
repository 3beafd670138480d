//! Order, bounds, deadlines, failure and recycling of the thread transport.

use super::*;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);

#[test]
fn messages_of_a_pair_keep_their_order_and_ranks_may_send_to_themselves() {
    let world = ThreadWorld::new(2, LONG);
    let mut got = Vec::new();
    for i in 0..QUEUE_MESSAGES as u8 {
        world[0].send(1, &[i; 3]).unwrap();
        world[0].send_parts(0, &[&[i], &[], &[7]]).unwrap();
    }
    for i in 0..QUEUE_MESSAGES as u8 {
        world[1].recv(0, &mut got).unwrap();
        assert_eq!(got, [i; 3]);
        world[0].recv(0, &mut got).unwrap();
        assert_eq!(got, [i, 7]);
    }
}

#[test]
fn queues_are_bounded_and_waits_end() {
    let world = ThreadWorld::new(2, SHORT);
    for _ in 0..QUEUE_MESSAGES {
        world[0].send(1, b"x").unwrap();
    }
    let error = world[0].send(1, b"x").unwrap_err().to_string();
    assert!(error.starts_with("rank 0: send with rank 1 failed: no room for 50 ms"), "{error}");
    let mut got = vec![1, 2];
    assert!(!world[0].recv_timeout(1, &mut got, Duration::from_millis(1)).unwrap());
    assert!(got.is_empty());
    let error = world[0].recv(1, &mut got).unwrap_err().to_string();
    assert!(error.starts_with("rank 0: recv with rank 1 failed: no message for 50 ms"), "{error}");
    assert!(world[0].send(2, b"x").unwrap_err().to_string().contains("the world has 2 ranks"));
    assert!(world[0].recv(9, &mut got).is_err());
}

#[test]
fn an_abort_ends_every_wait_with_the_first_reason() {
    let world = ThreadWorld::new(3, LONG);
    let waiting = Arc::clone(&world[1]);
    let wait = std::thread::spawn(move || waiting.recv(2, &mut Vec::new()));
    world[0].abort("planted");
    world[2].abort("later");
    let error = wait.join().unwrap().unwrap_err();
    let want = EngineError::Comm { rank: 1, peer: 0, op: "recv", reason: "rank 0 failed: planted".into() };
    assert_eq!(error, want);
    assert!(world[2].send(1, b"x").unwrap_err().to_string().contains("rank 0 failed: planted"));
}

#[test]
fn a_dropped_rank_is_missed_only_after_its_last_message() {
    let mut world = ThreadWorld::new(2, LONG);
    let one = world.pop().unwrap();
    one.send(0, b"bye").unwrap();
    drop(one);
    let mut got = Vec::new();
    world[0].recv(1, &mut got).unwrap();
    assert_eq!(got, b"bye");
    assert!(world[0].recv(1, &mut got).unwrap_err().to_string().contains("rank 1 has left"));
    assert!(world[0].send(1, b"x").unwrap_err().to_string().contains("rank 1 has left"));
}

#[test]
fn buffers_are_recycled() {
    let world = ThreadWorld::unframed(2, LONG);
    let mut got = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for round in 0..100 {
        world[0].send(1, &[5; 1000]).unwrap();
        world[1].recv(0, &mut got).unwrap();
        if round > 2 {
            seen.insert(got.as_ptr() as usize);
        }
    }
    assert!(seen.len() <= 2, "the queue and the receiver pass the same buffers: {}", seen.len());
}

#[test]
fn an_endless_deadline_is_legal() {
    let world = ThreadWorld::new(2, Duration::MAX);
    world[0].send(1, b"x").unwrap();
    world[1].recv(0, &mut Vec::new()).unwrap();
}
