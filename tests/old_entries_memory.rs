//! Ten thousand old entries, each with a key of its own, open a stream and fall silent: the exit lets go of them all,
//! and its memory does not grow. In a process of its own, since it measures the process.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]
#![cfg(target_os = "linux")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nostr::Keys;
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use support::client::Client;
use support::deployed::wire::{self, Wire};
use support::world::Setup;
use support::{ANY_PORT, TestRelay, soon};

/// Streams of one wave: few enough for the files that a process may have open.
const WAVE: usize = 250;
/// Waves after which the exit has seen its worst.
const WARM: usize = 12;
/// Waves in all.
const WAVES: usize = 40;
/// What the memory may differ by when nothing is kept: the allocator's own ups and downs.
const SLACK_KIB: u64 = 24 * 1024;

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_old_entries_that_fall_silent_leave_nothing_behind() {
    let service = tokio::net::TcpListener::bind(ANY_PORT).await.unwrap();
    let relay = TestRelay::start();
    let mut setup = Setup::new(std::slice::from_ref(&relay.url), &[(80, service.local_addr().unwrap())]);
    setup.limits.old_idle_timeout = Duration::from_millis(300);
    setup.start_exit(&CancellationToken::new()).await;
    let exit = setup.keys.public_key();
    let host = wire::name(&exit, std::slice::from_ref(&relay.url));

    let ended = Arc::new((AtomicUsize::new(0), Notify::new()));
    let counter = Arc::clone(&ended);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = service.accept().await {
            let ended = Arc::clone(&counter);
            tokio::spawn(async move {
                // Until the exit lets go of it.
                while stream.read(&mut [0; 64]).await.is_ok_and(|count| count > 0) {}
                ended.0.fetch_add(1, Ordering::AcqRel);
                ended.1.notify_one();
            });
        }
    });

    let mut client = Client::connect(&relay.url).await;
    let mut after_warm_up = 0;
    for wave in 1..=WAVES {
        for _ in 0..WAVE {
            let connect = Wire::new(Uuid::new_v4(), wire::CONNECT, &host);
            client.publish(&connect.seal(&Keys::generate(), &exit)).await;
        }
        soon("every stream of the wave ends", async {
            while ended.0.load(Ordering::Acquire) < wave * WAVE {
                ended.1.notified().await;
            }
        })
        .await;
        if wave == WARM {
            after_warm_up = resident_kib();
        }
    }
    let at_the_end = resident_kib();
    assert!(
        at_the_end < after_warm_up + SLACK_KIB,
        "{after_warm_up} KiB after {} streams, {at_the_end} KiB after {}",
        WARM * WAVE,
        WAVES * WAVE
    );
}
