//! The output of the tunnel by itself: rate limits by cause, and readers that do not read.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use self::output::{Missing, Output, RateLimit};
use crate::support::SECOND;

// Part of a program: there is no crate to take it from.
#[path = "../../examples/tunnel/output.rs"]
mod output;

fn words(missing: Missing) -> String {
    match missing {
        Missing::LeftOut { cause, lines } => format!("{lines} of {cause} left out"),
        Missing::Unread { lines } => format!("{lines} unread"),
    }
}

fn start(writer: &impl AsFd, rate: RateLimit) -> Arc<Output> {
    Output::start(writer.as_fd(), rate, words).unwrap()
}

/// Fault 50: each cause has its own limit, answers have none, and the summaries come at the latest at the end.
#[test]
fn fault_50_each_cause_has_a_limit_of_its_own() {
    let (reader, writer) = std::io::pipe().unwrap();
    let output = start(&writer, RateLimit::DEFAULT);
    for number in 0..100 {
        output.say("noise", || format!("noise {number}"));
        output.answer(format!("answer {number}"));
    }
    output.say("another", || "another".to_owned());
    output.flush(SECOND);
    let written = BufReader::new(reader).lines().map_while(Result::ok).take(122).collect::<Vec<_>>();
    let count = |text: &str| written.iter().filter(|line| line.starts_with(text)).count();
    assert_eq!((count("noise"), count("answer"), count("another")), (20, 100, 1));
    assert_eq!(written.last().unwrap(), "80 of noise left out");
}

/// Fault 63: a cause that repeats for ever has longer and longer windows; after a quiet one they are short again.
#[test]
fn fault_63_a_cause_that_repeats_for_ever_is_written_ever_less() {
    let (reader, writer) = std::io::pipe().unwrap();
    let rate = RateLimit { messages: 2, shortest: SECOND / 50, longest: SECOND / 5 };
    let output = start(&writer, rate);
    let begin = Instant::now();
    let mut said = 0;
    while begin.elapsed() < SECOND {
        output.say("noise", || "noise".to_owned());
        said += 1;
        std::thread::sleep(SECOND / 1000);
    }
    output.flush(SECOND);
    // Of 20, 40, 80, 160, 200, 200, 200 and 200 ms, or longer on a busy machine.
    let mut written = BufReader::new(reader).lines().map(Result::unwrap);
    let (mut noise, mut left_out, mut summaries) = (0, 0, 0);
    while noise + left_out < said {
        let line = written.next().unwrap();
        match line.split_once(' ') {
            None => noise += 1,
            Some((count, _)) => (left_out, summaries) = (left_out + count.parse::<u32>().unwrap(), summaries + 1),
        }
    }
    assert!((5..=2 * 8).contains(&noise) && (3..=8).contains(&summaries), "{noise} and {summaries} of {said}");
    // Nothing is left out of a window with few messages, and the thread says so by itself otherwise.
    std::thread::sleep(SECOND / 4);
    (0..3).for_each(|_| output.say("noise", || "noise".to_owned()));
    let rest: Vec<_> = written.take(3).collect();
    assert_eq!(rest, ["noise", "noise", "1 of noise left out"]);
}

/// Fault 56: with nobody who reads, no call waits, memory is bounded, and the newest lines are kept.
#[test]
fn fault_56_a_reader_who_comes_back_learns_how_much_is_lost() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    fcntl(writer.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while writer.write(&[b'.'; 1000]).is_ok() {}
    // It stays non-blocking, as whoever shares it may have made it: a line is written in full all the same.
    let output = start(&writer, RateLimit::DEFAULT);
    let begin = Instant::now();
    (0..10_000).for_each(|number| output.answer(format!("line {number} {}", "x".repeat(500))));
    output.flush(SECOND / 10);
    assert!(begin.elapsed() < SECOND, "{:?}", begin.elapsed());
    output.answer("end".to_owned());
    let mut written = Vec::new();
    for line in BufReader::new(reader).lines().map(Result::unwrap).take_while(|line| line != "end") {
        written.push(line.trim_start_matches('.').to_owned());
    }
    let (unread, whole): (Vec<_>, Vec<_>) = written.iter().partition(|line| line.ends_with(" unread"));
    let unread: usize = unread.iter().map(|line| line.trim_end_matches(" unread").parse::<usize>().unwrap()).sum();
    assert_eq!(unread + whole.len(), 10_000);
    assert!((200..300).contains(&whole.len()), "{} lines are kept", whole.len());
    assert!(whole.iter().all(|line| line.starts_with("line ") && line.ends_with(&"x".repeat(500))), "{whole:?}");
    assert!(whole.last().unwrap().starts_with("line 9999 "), "the newest is kept");
}
