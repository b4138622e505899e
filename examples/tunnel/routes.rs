//! Which route came from where: the command line, the file, or the control socket.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net};
use loden::route::{Route, RouteChange, RoutePublisher, RouteReader};

use crate::args::{NextHopArg, RouteArg, parse_subnet};
use crate::report::say;

/// The published routes and their origins.
pub(crate) struct Routes {
    publisher: RoutePublisher,
    origins: HashMap<IpNet, Origin>,
    file: Option<PathBuf>,
    port: u16,
    own_subnet: IpNet,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    CommandLine,
    Control,
    File,
}

/// A good line of the file.
struct Line {
    number: usize,
    route: Route,
}

impl Routes {
    pub(crate) fn new(listen: SocketAddr, own_subnet: Ipv4Net) -> Self {
        let publisher = RoutePublisher::bound_to(listen);
        let own_subnet = own_subnet.trunc().into();
        Self { publisher, origins: HashMap::new(), file: None, port: listen.port(), own_subnet }
    }

    pub(crate) fn reader(&self) -> RouteReader {
        self.publisher.reader()
    }

    pub(crate) fn len(&self) -> usize {
        self.publisher.table().len()
    }

    /// Takes the routes of the command line; one that cannot be a route is a mistake of whoever wrote it.
    pub(crate) fn set_from_command_line(&mut self, routes: &[RouteArg]) -> Result<(), String> {
        for RouteArg { subnet, next_hop } in routes {
            let route = Route::new(subnet.trunc(), next_hop.or_port(self.port));
            if route.subnet == self.own_subnet {
                return Err(format!("--route {route}: that is our own subnet, whose packets stay on this host"));
            }
            let applied = self.publisher.apply([RouteChange::Set(route)]);
            if let Some(refused) = applied.refused.first() {
                return Err(format!("--{refused}"));
            }
            self.origins.insert(route.subnet, Origin::CommandLine);
        }
        Ok(())
    }

    /// Takes the routes of a file for the first time. Bad lines are reported; a file that cannot be read is an error.
    pub(crate) fn read_file(&mut self, file: PathBuf) -> Result<(), String> {
        let text =
            std::fs::read_to_string(&file).map_err(|error| format!("--routes-file {}: {error}", file.display()))?;
        self.file = Some(file);
        self.replace_from_file(&text);
        Ok(())
    }

    /// Replaces the routes that came from the file, and nothing else. If it cannot be read they stay.
    pub(crate) fn reread_file(&mut self) {
        let Some(file) = &self.file else { return say("SIGHUP: there is no --routes-file to read again") };
        match std::fs::read_to_string(file) {
            Ok(text) => {
                self.replace_from_file(&text);
                say(&format!("SIGHUP: {} read again, {} routes in all", self.name(), self.len()));
            }
            Err(error) => say(&format!("SIGHUP: {}: {error}; its routes stay as they are", file.display())),
        }
    }

    /// Applies what came over the control socket, later changes over earlier ones and over all other origins. Returns how
    /// many routes were refused.
    pub(crate) fn set_from_control(&mut self, changes: impl Iterator<Item = RouteChange>) -> u64 {
        let is_own =
            |change: &RouteChange| matches!(change, RouteChange::Set(route) if route.subnet.trunc() == self.own_subnet);
        let (own, permitted): (Vec<_>, Vec<_>) = changes.partition(is_own);
        if !own.is_empty() {
            say(&format!("control: a route of {} is refused: that is our own subnet", self.own_subnet));
        }
        let applied = self.publisher.apply(permitted.iter().copied());
        for route in &applied.refused {
            say(&format!("control: {route}"));
        }
        for change in permitted {
            if let RouteChange::Delete(subnet) = change {
                self.origins.remove(&subnet.trunc());
            } else if let RouteChange::Set(route) = change
                && applied.refused.iter().all(|refused| refused.route != route)
            {
                self.origins.insert(route.subnet.trunc(), Origin::Control);
            }
        }
        (own.len() + applied.refused.len()) as u64
    }

    fn replace_from_file(&mut self, text: &str) {
        let lines = self.good_lines(text);
        let gone: Vec<_> =
            self.origins.iter().filter(|(_, origin)| **origin == Origin::File).map(|(net, _)| *net).collect();
        let deletes = gone.iter().filter(|net| lines.iter().all(|line| line.route.subnet != **net));
        let deletes = deletes.map(|net| RouteChange::Delete(*net));
        let sets = lines.iter().map(|line| RouteChange::Set(line.route));
        // One batch, hence one table: no packet sees a state between the old file and the new one.
        let applied = self.publisher.apply(deletes.chain(sets));
        for net in gone {
            self.origins.remove(&net);
        }
        for line in lines {
            match applied.refused.iter().find(|refused| refused.route == line.route) {
                // A refused route leaves an older one of its subnet in force, which then is still the file's.
                Some(refused) => {
                    self.report_line(line.number, &refused.to_string());
                    if self.publisher.table().exact(line.route.subnet).is_some() {
                        self.origins.insert(line.route.subnet, Origin::File);
                    }
                }
                None => drop(self.origins.insert(line.route.subnet, Origin::File)),
            }
        }
    }

    /// The lines that are routes and are the file's to set; the others are reported.
    fn good_lines(&self, text: &str) -> Vec<Line> {
        let mut lines = Vec::<Line>::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let route = match self.parse_line(line) {
                Ok(route) => route,
                Err(reason) => {
                    self.report_line(number, &reason);
                    continue;
                }
            };
            if let Some(earlier) = lines.iter_mut().find(|earlier| earlier.route.subnet == route.subnet) {
                self.report_line(
                    number,
                    &format!("{} is on line {} too; this one counts", route.subnet, earlier.number),
                );
                *earlier = Line { number, route };
            } else {
                lines.push(Line { number, route });
            }
        }
        lines
    }

    fn parse_line(&self, line: &str) -> Result<Route, String> {
        let mut words = line.split_whitespace();
        let (Some(subnet), Some(next_hop), None) = (words.next(), words.next(), words.next()) else {
            return Err(format!("{line:?} is not SUBNET ADDR[:PORT]"));
        };
        let next_hop = next_hop.parse::<NextHopArg>()?.or_port(self.port);
        let route = Route::new(parse_subnet(subnet)?.trunc(), next_hop);
        match self.origins.get(&route.subnet) {
            _ if route.subnet == self.own_subnet => Err(format!("{subnet} is our own subnet, whose packets stay here")),
            Some(Origin::CommandLine) => Err(format!("the route of {subnet} was given on the command line and stays")),
            Some(Origin::Control) => Err(format!("the route of {subnet} was set over the control socket and stays")),
            Some(Origin::File) | None => Ok(route),
        }
    }

    fn report_line(&self, number: usize, reason: &str) {
        say(&format!("{} line {number}: {reason}", self.name()));
    }

    fn name(&self) -> String {
        self.file.as_ref().map(|file| file.display().to_string()).unwrap_or_default()
    }
}
