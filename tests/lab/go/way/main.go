// A long way between two network devices, for kernels that cannot delay packets: what is sent into either one comes out
// of the other. Each direction moves so many bytes a second (0: as many as come), queues so many and drops what does not
// fit, and delivers what has passed after a delay, in order.
//
//	way NAME NAME BYTES_PER_SECOND QUEUE_BYTES DELAY [offload]
//
// With offload the kernel hands over what it would hand to a network card: segments of up to 64 KiB, uncut and without
// checksum. They are passed on, queued and dropped whole, which takes a fraction of the processor's time.
//
// Both devices are made here and are gone when it ends. "ready" on its output says that they are there.
package main

import (
	"fmt"
	"log"
	"os"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

const (
	tunSetIff = 0x400454ca // linux/if_tun.h
	iffTun    = 0x0001
	iffNoPi   = 0x1000
	iffHeader = 0x4000      // a virtio_net_hdr before each packet, which says what is left to do on it
	tunSetOff = 0x400454d0  // TUNSETOFFLOAD
	offloads  = 0x01 | 0x02 // TUN_F_CSUM, TUN_F_TSO4
	header    = 10
	largest   = header + 65536
	most      = 1 << 16 // packets on their way
)

type packet struct {
	due  time.Time
	data []byte
}

func device(name string, offload bool) *os.File {
	descriptor, err := syscall.Open("/dev/net/tun", syscall.O_RDWR|syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	if err != nil {
		log.Fatalf("/dev/net/tun: %v", err)
	}
	var request [40]byte // struct ifreq
	copy(request[:15], name)
	flags := uint16(iffTun | iffNoPi)
	if offload {
		flags |= iffHeader
	}
	*(*uint16)(unsafe.Pointer(&request[16])) = flags
	if _, _, no := syscall.Syscall(syscall.SYS_IOCTL, uintptr(descriptor), tunSetIff, uintptr(unsafe.Pointer(&request[0]))); no != 0 {
		log.Fatalf("device %s: %v", name, no)
	}
	if offload {
		if _, _, no := syscall.Syscall(syscall.SYS_IOCTL, uintptr(descriptor), tunSetOff, offloads); no != 0 {
			log.Fatalf("device %s: offloads: %v", name, no)
		}
	}
	return os.NewFile(uintptr(descriptor), name)
}

func take(from *os.File, way chan<- packet, rate float64, queue float64, delay time.Duration) {
	free := time.Now()
	buffer := make([]byte, largest)
	for {
		size, err := from.Read(buffer)
		if err != nil {
			time.Sleep(10 * time.Millisecond) // a device that is not up yet
			continue
		}
		now := time.Now()
		if free.Before(now) {
			free = now
		}
		if rate > 0 {
			if free.Sub(now).Seconds()*rate+float64(size) > queue {
				continue
			}
			free = free.Add(time.Duration(float64(size) / rate * float64(time.Second)))
		}
		select {
		case way <- packet{free.Add(delay), append([]byte(nil), buffer[:size]...)}:
		default: // as any queue that is full
		}
	}
}

func give(to *os.File, way <-chan packet) {
	for next := range way {
		if wait := time.Until(next.due); wait > 0 {
			time.Sleep(wait)
		}
		_, _ = to.Write(next.data) // a device that is down loses packets
	}
}

func main() {
	offload := len(os.Args) == 7 && os.Args[6] == "offload"
	if len(os.Args) != 6 && !offload {
		log.Fatal("usage: way NAME NAME BYTES_PER_SECOND QUEUE_BYTES DELAY [offload]")
	}
	rate, err := strconv.ParseFloat(os.Args[3], 64)
	if err != nil {
		log.Fatal(err)
	}
	queue, err := strconv.ParseFloat(os.Args[4], 64)
	if err != nil {
		log.Fatal(err)
	}
	delay, err := time.ParseDuration(os.Args[5])
	if err != nil {
		log.Fatal(err)
	}
	near, far := device(os.Args[1], offload), device(os.Args[2], offload)
	there, back := make(chan packet, most), make(chan packet, most)
	go take(near, there, rate, queue, delay)
	go take(far, back, rate, queue, delay)
	go give(far, there)
	go give(near, back)
	fmt.Println("ready")
	select {}
}
