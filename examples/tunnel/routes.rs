//! The origin of each route: the command line, the file, or the control socket.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use ipnet::IpNet;
use loden::Host;
use loden::route::{Route, RouteChange, RoutePublisher, RouteReader};

use crate::args::{Args, NextHopArg, RouteArg, parse_subnet};
use crate::report::{answer, say};
use crate::routes_file::{BadLines, read};

/// The published routes and their origins.
pub(crate) struct Routes {
    publisher: RoutePublisher,
    origins: HashMap<IpNet, Origin>,
    file: Option<PathBuf>,
    host: Host,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    CommandLine,
    Control,
    File,
}

/// A valid line of the file.
struct Line {
    number: usize,
    route: Route,
}

impl Routes {
    /// Sets the routes of the command line. An invalid one is an error.
    pub(crate) fn of(args: &Args) -> Result<Self, String> {
        let (host, file) = (args.host().map_err(|error| error.to_string())?, args.routes_file.clone());
        let publisher = RoutePublisher::for_host(&host);
        let mut routes = Self { publisher, origins: HashMap::new(), file, host };
        for RouteArg { subnet, next_hop } in &args.route {
            let next_hop = next_hop.or_port_of(&routes.host).map_err(|error| format!("--route {subnet}: {error}"))?;
            let route = Route::new(subnet.trunc(), next_hop);
            let applied = routes.publisher.apply([RouteChange::Set(route)]);
            if let Some(refused) = applied.refused.first() {
                return Err(format!("--{refused}"));
            }
            routes.origins.insert(route.subnet, Origin::CommandLine);
        }
        Ok(routes)
    }

    pub(crate) fn reader(&self) -> RouteReader {
        self.publisher.reader()
    }

    pub(crate) fn len(&self) -> usize {
        self.publisher.table().len()
    }

    /// Sets the routes of the file for the first time. Bad lines are reported; a file that cannot be read is an error.
    pub(crate) fn read_file(&mut self) -> Result<(), String> {
        let Some(file) = self.file.clone() else { return Ok(()) };
        let text = read(&file).map_err(|error| format!("--routes-file {}: {error}", file.display()))?;
        self.replace_from_file(&text, BadLines::of(&file));
        Ok(())
    }

    /// Replaces the routes of the file, and no others. If it cannot be read they stay.
    pub(crate) fn read_file_again(&mut self) {
        let Some(file) = self.file.clone() else {
            return answer(format_args!("SIGHUP: there is no --routes-file to read again"));
        };
        let name = file.display();
        match read(&file) {
            Ok(text) => {
                let bad = self.replace_from_file(&text, BadLines::of(&file));
                let bad = if bad > 0 { format!(", {bad} bad lines") } else { String::new() };
                answer(format_args!("SIGHUP: {name} read again, {} routes in all{bad}", self.len()));
            }
            Err(error) => answer(format_args!("SIGHUP: {name}: {error}; its routes stay as they are")),
        }
    }

    /// Applies the changes of the control socket. Later changes replace earlier ones and all other origins. Returns the
    /// number of refused routes.
    pub(crate) fn set_from_control(&mut self, changes: &[RouteChange]) -> usize {
        let is_reached = |change: &RouteChange| !matches!(change, RouteChange::Set(route) if self.host.underlay_to(route.next_hop.ip()).is_none());
        let (changes, unreached) = changes.iter().copied().partition::<Vec<_>, _>(is_reached);
        for change in &unreached {
            let subnet = change.subnet();
            say(
                "refused routes",
                format_args!("control: the next hop of {subnet} is reached from no --listen address"),
            );
        }
        let applied = self.publisher.apply(changes.iter().copied());
        for refused in &applied.refused {
            say("refused routes", format_args!("control: {refused}"));
        }
        let refused: HashSet<_> = applied.refused.iter().map(|refused| refused.route).collect();
        for change in &changes {
            if let RouteChange::Delete(subnet) = change {
                self.origins.remove(&subnet.trunc());
            } else if let RouteChange::Set(route) = change
                && !refused.contains(route)
            {
                self.origins.insert(route.subnet.trunc(), Origin::Control);
            }
        }
        applied.refused.len() + unreached.len()
    }

    /// Returns the number of bad lines.
    fn replace_from_file(&mut self, text: &str, mut bad: BadLines<'_>) -> usize {
        let lines = self.good_lines(text, &mut bad);
        let of_file = |(subnet, origin): (&IpNet, &Origin)| (*origin == Origin::File).then_some(*subnet);
        let before: Vec<_> = self.origins.iter().filter_map(of_file).collect();
        let deletes =
            before.iter().filter(|subnet| !lines.contains_key(subnet)).map(|subnet| RouteChange::Delete(*subnet));
        let sets = lines.values().map(|line| RouteChange::Set(line.route));
        // One batch makes one table: no packet sees a state between the old file and the new one.
        let applied = self.publisher.apply(deletes.chain(sets));
        for subnet in before {
            self.origins.remove(&subnet);
        }
        self.origins.extend(lines.keys().map(|subnet| (*subnet, Origin::File)));
        // A line that became invalid removes its former route.
        let refused = applied.refused.iter().map(|refused| refused.route.subnet);
        let _ = self.publisher.apply(refused.clone().map(RouteChange::Delete));
        for subnet in refused {
            self.origins.remove(&subnet);
        }
        let number = |subnet| lines.get(subnet).map_or(0, |line| line.number);
        let mut refused: Vec<_> =
            applied.refused.iter().map(|refused| (number(&refused.route.subnet), refused)).collect();
        refused.sort_by_key(|(number, _)| *number);
        for (number, refused) in refused {
            bad.report(number, refused);
        }
        bad.finish()
    }

    /// Returns the lines that are routes of the file; the others are reported.
    fn good_lines(&self, text: &str, bad: &mut BadLines<'_>) -> HashMap<IpNet, Line> {
        let mut lines = HashMap::<IpNet, Line>::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            match self.parse_line(line) {
                Ok(route) => {
                    if let Some(earlier) = lines.insert(route.subnet, Line { number, route }) {
                        let (subnet, earlier) = (route.subnet, earlier.number);
                        bad.report(number, &format_args!("{subnet} is on line {earlier} too; this one counts"));
                    }
                }
                Err(reason) => bad.report(number, &reason),
            }
        }
        lines
    }

    fn parse_line(&self, line: &str) -> Result<Route, String> {
        let mut words = line.split_whitespace();
        let (Some(subnet), Some(next_hop), None) = (words.next(), words.next(), words.next()) else {
            return Err(format!("{line:?} is not SUBNET ADDR[:PORT]"));
        };
        let next_hop = next_hop.parse::<NextHopArg>()?.or_port_of(&self.host)?;
        let route = Route::new(parse_subnet(subnet)?.trunc(), next_hop);
        match self.origins.get(&route.subnet) {
            Some(Origin::CommandLine) => Err(format!("the route of {subnet} was given on the command line and stays")),
            Some(Origin::Control) => Err(format!("the route of {subnet} was set over the control socket and stays")),
            Some(Origin::File) | None => Ok(route),
        }
    }
}
