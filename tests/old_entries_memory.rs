//! Ten thousand old entries, each with a key of its own, open a stream and fall silent: the exit lets go of them all,
//! and its memory does not grow. In a process of its own, since it measures the process.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]
#![cfg(target_os = "linux")]

mod support;

use std::alloc::System;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nostr::Keys;
use stats_alloc::StatsAlloc;
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use support::client::Client;
use support::deployed::wire::{self, Wire};
use support::world::Setup;
use support::{ANY_PORT, TestRelay, soon};

#[global_allocator]
static ALLOCATOR: StatsAlloc<System> = StatsAlloc::system();

/// Streams of one wave: few enough for the files that a process may have open.
const WAVE: usize = 250;
/// Waves in all.
const WAVES: usize = 40;
/// What may be left of them: two hundred bytes each (their openings are remembered for a while, so that a relay cannot
/// replay them) and the buffers of the connections to the relay.
const LEFT_MAX: usize = WAVES * WAVE * 200 + 2 * 1024 * 1024;

/// Bytes in use, in the whole process: what the system gives it says more about the allocator than about us.
fn in_use() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated.saturating_sub(stats.bytes_deallocated)
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
    let before = in_use();
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
    }
    // A session outlives its stream by some seconds, in case the entry is heard once more.
    let mut look = tokio::time::interval(Duration::from_millis(100));
    let left = tokio::time::timeout(Duration::from_secs(60), async {
        while in_use() > before + LEFT_MAX {
            look.tick().await;
        }
    })
    .await;
    assert!(left.is_ok(), "{} bytes in use before, {} long after {} streams", before, in_use(), WAVES * WAVE);
}
