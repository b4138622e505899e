//! A node of a flannel cluster, like flanneld with the udp backend, based on loden.
//!
//! ```text
//!   etcd ──▶ registry ──▶ feed ──▶ node ──▶ LeaseReader ──▶ Reconciler ──▶ RoutePublisher
//!    ▲          keys      list,     │                                           │
//!    │                    watch     ├── renews the lease                        ▼
//!    └───────── acquire ◀───────────┤── link: route put back, MTU       dataplane: TUN ⇄ Worker ⇄ UDP
//!               transactions        ├── rules: put back in a thread     a thread of its own
//!                                   └── prints events
//! ```
//!
//! Exit status 0: stopped as requested; 1: ended by an error; 2: failed to start.

mod acquire;
mod args;
mod check;
mod clock;
mod commands;
mod dataplane;
mod etcd;
mod feed;
mod healthz;
mod links;
mod node;
mod notify;
mod output;
mod place;
mod registry;
mod reload;
mod rules;
mod stamp;
mod start;
mod subnets;
mod words;

use std::process::ExitCode;

use tokio::runtime::Builder;
use tokio::task::LocalSet;

use args::{Arguments, Command};
use etcd::Etcd;
use output::{Event, Output, Pace};
use registry::Registry;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// An unrequested end with its exit status.
struct Failure {
    status: u8,
    reason: Error,
}

/// Converts an error at the start.
impl<E: Into<Error>> From<E> for Failure {
    fn from(reason: E) -> Self {
        Self { status: 2, reason: reason.into() }
    }
}

fn main() -> ExitCode {
    let args = Arguments::of_process();
    let pace = if args.command.is_some() { Pace::OfReader } else { Pace::Own };
    let output = Output::new(args.is_json(), pace);
    for reason in &args.notices {
        let _ = output.answer(&Event::Warning { reason: reason.clone() });
    }
    let outcome = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            // etcd's futures run on this thread. The packets and the firewall rules have threads of their own.
            let outcome = runtime.block_on(LocalSet::new().run_until(act(&args, &output)));
            // A pending name lookup must not delay the exit.
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
        Some(Command::Check) => check::check(registry, args, output).await,
    }
}
