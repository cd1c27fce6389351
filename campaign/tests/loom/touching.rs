//! The first-touch bitmap.

use crate::explore;
use crate::seen::Seen;
use loom::sync::{Arc, Mutex};
use loom::thread;

#[test]
fn a_piece_counts_as_seen_only_after_it_was_verified() {
    explore(4, || {
        let (seen, verified) = (Arc::new(Seen::new(8)), Arc::new(Mutex::new(0)));
        let touch = {
            let (seen, verified) = (Arc::clone(&seen), Arc::clone(&verified));
            move || {
                let verify = || {
                    *verified.lock().unwrap() += 1;
                    Ok::<(), ()>(())
                };
                seen.check(3, false, verify).unwrap();
                assert!(*verified.lock().unwrap() > 0, "read before anyone had verified it");
                assert!(seen.has(3));
            }
        };
        let other = thread::spawn(touch.clone());
        touch();
        other.join().unwrap();
        let verify = || Err("verified again");
        seen.check(3, false, verify).unwrap();
        assert_eq!(seen.check(3, true, verify), Err("verified again"));
    });
}

#[test]
fn a_damaged_piece_is_reported_to_everyone_who_touches_it() {
    explore(4, || {
        let seen = Arc::new(Seen::new(8));
        let touch = {
            let seen = Arc::clone(&seen);
            move || assert_eq!(seen.check(3, false, || Err("damaged")), Err("damaged"))
        };
        let other = thread::spawn(touch.clone());
        touch();
        other.join().unwrap();
        assert!(!seen.has(3));
    });
}

#[test]
fn pieces_that_share_a_word_do_not_undo_each_other() {
    explore(4, || {
        let seen = Arc::new(Seen::new(128));
        let others: Vec<_> = [1, 64]
            .into_iter()
            .map(|bit| {
                let seen = Arc::clone(&seen);
                thread::spawn(move || seen.set(bit))
            })
            .collect();
        seen.set(0);
        others.into_iter().for_each(|other| other.join().unwrap());
        let set: Vec<usize> = (0..128).filter(|bit| seen.has(*bit)).collect();
        assert_eq!(set, [0, 1, 64]);
        seen.set(128);
        assert!(!seen.has(128), "beyond the end nothing is ever seen");
    });
}
