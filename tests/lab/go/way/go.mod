module tower.test/way

go 1.25.0

godebug default=go1.25
