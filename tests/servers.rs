//! The private servers: ready when they say so, gone when they are dropped, also by a panic.

use std::{
    io::{Read, Write},
    net::TcpStream,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use rustix::process::{Pid, test_kill_process};

use crate::support::{postgres::Postgres, redis::Redis};

fn alive(pid: Pid) -> bool {
    test_kill_process(pid).is_ok()
}

#[test]
fn a_private_redis_answers_and_is_gone_after_the_drop() {
    let redis = Redis::start();
    let pid = redis.server.pid();
    let keys = redis.ask("DBSIZE").expect("it answers");
    assert!(keys.starts_with(":0\r\n"), "a server of one's own is empty: {keys:?}");
    drop(redis);
    assert!(!alive(pid));
}

#[test]
fn a_private_postgresql_answers_and_is_gone_after_the_drop() {
    let postgres = Postgres::start();
    let pid = postgres.server.pid();
    let url = postgres.url();
    let address = url.split(['@', '/']).nth(3).expect("the address follows the user");
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("not zero");
    // Protocol 3.0: length, version, user, database, end. With `trust` the answer is `R`, code 0.
    let mut hello = vec![0, 3, 0, 0];
    hello.extend(b"user\0parallax\0database\0postgres\0\0");
    let length = u32::try_from(hello.len() + 4).expect("short");
    stream.write_all(&length.to_be_bytes()).expect("it reads");
    stream.write_all(&hello).expect("it reads");
    let mut answer = [0; 9];
    stream.read_exact(&mut answer).expect("it answers");
    assert_eq!(&answer, b"R\0\0\0\x08\0\0\0\0");
    drop(postgres);
    assert!(!alive(pid));
}

#[test]
fn two_private_servers_live_side_by_side() {
    let (one, other) = (Redis::start(), Redis::start());
    assert_ne!(one.url(), other.url());
    let (one, other) = (Postgres::start(), Postgres::start());
    assert_ne!(one.url(), other.url());
    assert!(alive(one.server.pid()) && alive(other.server.pid()));
}

#[test]
fn a_test_that_panics_takes_its_servers_along() {
    let mut pids = Vec::new();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let (postgres, redis) = (Postgres::start(), Redis::start());
        pids = vec![postgres.server.pid(), redis.server.pid()];
        assert!(pids.iter().all(|pid| alive(*pid)));
        panic!("a test that fails with its servers up");
    }));
    panicked.expect_err("it panicked");
    assert_eq!(pids.len(), 2);
    assert!(pids.iter().all(|pid| !alive(*pid)));
}
