// The page's way to the package `colonyd`; where that lies is in the import map of index.html.

export * from "colonyd";
