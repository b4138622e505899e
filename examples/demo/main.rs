//! Two hosts with a pod each and a tunnel between them, all on this machine: `cargo run --release --example demo`.
//!
//! It needs root, or a system on which users may make user namespaces. Everything lives in unnamed network namespaces:
//! nothing outside them changes, and the kernel removes them after any end. Status 0: all results were right; 1: a step
//! failed; 2: this process may not make namespaces or TUN devices; 130: Ctrl-C; 141: standard output was closed.

/// Prints one line. An error ends the demo.
macro_rules! say {
    ($($text:tt)*) => { crate::end::say(format_args!($($text)*)) };
}

mod counted;
mod end;
mod tour;
mod tunnel;

use std::io::ErrorKind;
use std::process::ExitCode;

use testbed::TwoHosts;

use self::end::End;
use self::tunnel::Tunnel;

const PICTURE: &str = "
      pod a                  host a                      host b                  pod b
                    +--------------------+        +--------------------+
   100.96.1.2 ------+ 100.96.1.1  kernel |        | kernel  100.96.2.1 +------ 100.96.2.3
                    |               |    |        |    |               |
                    | 100.96.1.0  loden0 |  UDP   | loden0  100.96.2.0 |
                    |               |    |  8285  |    |               |
                    | 10.168.0.2  tunnel +--------+ tunnel  10.168.0.3 |
                    +--------------------+        +--------------------+
";
const IPV6_PICTURE: &str = "   The pods have IPv6 beside it: fd00:96:1::2 and fd00:96:2::3, on the same way.
";

fn main() -> ExitCode {
    // The first call, because it may enter a user namespace, which needs a process with one thread.
    let ended = match testbed::ensure_privileges() {
        Ok(()) => demo(),
        Err(error) => Err(End::NotPermitted(error.to_string())),
    };
    end::exit_code(ended)
}

fn demo() -> Result<(), End> {
    end::watch_for_interrupt().map_err(End::failed("cannot watch for Ctrl-C"))?;
    say!("{PICTURE}")?;
    let has_ipv6 = testbed::has_ipv6();
    if has_ipv6 {
        say!("{IPV6_PICTURE}")?;
    }
    let hosts = match TwoHosts::new() {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return Err(End::NotPermitted(error.to_string())),
        made => made.map_err(End::failed("cannot make two hosts"))?,
    };
    if has_ipv6 {
        hosts.add_ipv6().map_err(End::failed("cannot add IPv6"))?;
    }
    let near = Tunnel::start(&hosts.host_a, &tunnel::HOST_A, &tunnel::HOST_B, has_ipv6)?;
    let far = Tunnel::start(&hosts.host_b, &tunnel::HOST_B, &tunnel::HOST_A, has_ipv6)?;
    say!("Four network namespaces and two tunnels are up. A tunnel is a TUN device, a UDP socket and a poll loop.")?;
    let toured = tour::take(&hosts, has_ipv6);
    // After any result of the tour, the threads end first, then the namespaces they are in.
    let (near, far) = (near.stop(), far.stop());
    // A failed tunnel is the cause of the tour's error.
    let (near, far) = (near?, far?);
    toured?;
    counted::show(&near, &far, has_ipv6)?;
    tunnel::check_removed(&hosts)?;
    drop(hosts);
    say!("\nEverything was removed: both tunnels and their TUN devices, and all four namespaces.")
}
