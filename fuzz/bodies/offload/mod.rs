//! What the fuzz targets of GSO packets do with their input. The ordinary tests run the same over the committed seeds.

pub(crate) mod coalesce;
pub(crate) mod model;
pub(crate) mod opinion;
pub(crate) mod script;
pub(crate) mod segment;
pub(crate) mod vnet;
