//! A node of a flannel cluster: what flanneld does with the udp backend, on top of loden.
//!
//! ```text
//!   etcd ──▶ registry ──▶ feed ──▶ node ──▶ LeaseReader ──▶ Reconciler ──▶ RoutePublisher
//!    ▲          keys      list,     │                                           │
//!    │                    watch     ├── renews the lease                        ▼
//!    └───────── acquire ◀───────────┤── link: route put back, MTU       plane: TUN ⇄ Worker ⇄ UDP
//!               transactions        └── says what happens               a thread of its own
//! ```
//!
//! Status 0: stopped as asked; 1: ended by a fault; 2: never began.

mod acquire;
mod args;
mod clock;
mod commands;
mod dataplane;
mod etcd;
mod feed;
mod links;
mod node;
mod output;
mod registry;
mod start;

use std::process::ExitCode;

use tokio::runtime::Builder;
use tokio::task::LocalSet;

use args::{Arguments, Command};
use etcd::Etcd;
use output::{Output, Pace};
use registry::Registry;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// An end that nobody asked for, and the status to end with.
struct Failure {
    status: u8,
    reason: Error,
}

/// What is wrong before anything has begun.
impl<E: Into<Error>> From<E> for Failure {
    fn from(reason: E) -> Self {
        Self { status: 2, reason: reason.into() }
    }
}

fn main() -> ExitCode {
    let args = Arguments::of_process();
    let pace = if args.command.is_some() { Pace::OfReader } else { Pace::Own };
    let output = Output::new(args.json, pace);
    let outcome = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            // etcd's futures stay on this thread, the only one beside that of the packets.
            let outcome = runtime.block_on(LocalSet::new().run_until(act(&args, &output)));
            // Without waiting for a name of etcd's that is being looked up.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { status, reason }) => {
            output.error(&reason.to_string());
            ExitCode::from(status)
        }
    }
}

async fn act(args: &Arguments, output: &Output) -> Result<(), Failure> {
    let registry = Registry::new(Etcd::new(&args.etcd)?, &args.etcd.etcd_prefix);
    match &args.command {
        None => node::run(registry, args, output).await,
        Some(Command::SetConfig(config)) => commands::set_config(registry, config, output).await,
        Some(Command::List) => commands::list(registry, output).await,
    }
}
